"""Published weights by name: `published` is the table, `pretrained` fetches, converts and keeps them."""
