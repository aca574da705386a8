"""Speed side by side with the peers, and what scales how. Not installed; run from the folder of the repository."""
