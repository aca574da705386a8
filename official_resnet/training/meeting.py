"""How workers meet before TensorFlow connects them, because TensorFlow would wait forever for one that is missing.

Each worker calls the first one, the chief, and says in one line of JSON who it is. When all have called, the chief
answers each in one line, so that all continue, or all end with the same message. Anybody may call an open port, or
answer at the chief's. So the exchange has a total deadline; a line has a largest size; callers are heard side by side;
and who does not prove that it knows the job's token, or says what no worker says, is ignored. Workers of one machine
listen only on its loopback.
"""

import hashlib
import hmac
import ipaddress
import json
import os
import selectors
import socket
import struct
import time
from collections.abc import Sequence

from official_resnet import bounds
from official_resnet.errors import UserError, one_line

_LATE = 5  # seconds that a worker waits longer than the chief, which says who is missing
_PARTING = 2  # seconds in which the workers take the answer
_NO_WAIT = struct.pack(
    'ii', 1, 0
)  # SO_LINGER: a connection ends when it is closed, so that TensorFlow finds the port free


def meet(addresses: Sequence[str], index: int, token: str = '', seconds: float | None = None) -> None:
    """Wait at the chief's address until all workers have arrived.

    Args:
        addresses: 'host:port' of each worker, the chief first.
        index: The number of this worker.
        token: The secret of the job. It is not sent; each side proves that it knows it.
        seconds: How long to wait for the last worker, by default `meeting_seconds`.

    Raises:
        UserError: A worker is late, two have the same index, their lists of workers or tokens differ, or a port is in
            use.
    """
    if len(addresses) == 1:
        return
    deadline = time.monotonic() + (bounds.limit('meeting_seconds') if seconds is None else seconds)
    with _listen(addresses, index) as listener:  # all listen, to see that the port which TensorFlow needs is free
        if index == 0:
            _Chief(listener, addresses, token).wait(deadline)
        else:
            _call_chief(addresses, index, token, deadline)


def split(address: str) -> tuple[str, int]:
    """Return (host, port) of 'host:port'; ValueError if the address has another form."""
    host, _, port = address.rpartition(':')
    if not (host and port.isascii() and port.isdigit() and len(port) < 6 and 0 < int(port) < 65536):
        raise ValueError(address)
    host.encode('idna')  # UnicodeError, a ValueError, which getaddrinfo would raise
    return host.removeprefix('[').removesuffix(']'), int(port)


def are_local(addresses: Sequence[str]) -> bool:
    """Return whether all addresses name the loopback: no other machine can be meant, nor can any call."""
    return all(_is_loopback(split(address)[0]) for address in addresses)


def _is_loopback(host):
    """Names are not looked up: a machine's own name may mean the loopback there, and not elsewhere."""
    try:
        return host == 'localhost' or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listen(addresses, index):
    host, port = split(addresses[index])
    try:
        if are_local(addresses):
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            family, *_, place = min(found, key=lambda row: row[0] != socket.AF_INET)
            return socket.create_server(place[:2], family=family, backlog=128)
        family = {'family': socket.AF_INET6, 'dualstack_ipv6': True} if socket.has_dualstack_ipv6() else {}
        return socket.create_server(('', port), backlog=128, **family)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno > 0 else error.strerror  # below 0: of getaddrinfo
        raise UserError(
            f"cannot listen on port {port} of '{addresses[index]}': {reason}; stop the "
            'program that uses it, or pass another port to all workers'
        ) from error


def _listing(addresses):
    """Return a text that is the same for the same addresses, and that begins with them as far as a message shows."""
    text = ','.join(addresses)
    return f'{text[:200]} {hashlib.sha256(text.encode()).hexdigest()}'


def _line(token, kind, **fields):
    """Return a message: a JSON object in one line, with a proof that its sender knows the token."""
    return f'{json.dumps(fields | {"proof": _proof(token, kind, fields)})}\n'.encode()


def _proof(token, kind, fields):
    return hmac.new(os.fsencode(token), json.dumps([kind, fields], sort_keys=True).encode(), 'sha256').hexdigest()


def _opened(token, kind, line):
    """Return (fields, whether the sender knows the token) of a message. Any Exception means that it is none of ours."""
    fields = json.loads(line)
    return fields, hmac.compare_digest(fields.pop('proof'), _proof(token, kind, fields))


class _Chief:
    """The chief's side of the exchange.

    Attributes:
        callers: {connection: what it has said so far}, of those that have not said who they are; the oldest first.
        arrived: {number: connection} of the workers.
        fault: What is wrong, a message for all.
    """

    def __init__(self, listener, addresses, token):
        self.addresses, self.token, self.fault = addresses, token, None
        self.callers: dict[socket.socket, bytearray] = {}
        self.arrived: dict[int, socket.socket] = {}
        self.num_refused = 0
        self.selector, self.listener = selectors.DefaultSelector(), listener
        listener.setblocking(False)
        self.selector.register(listener, selectors.EVENT_READ)

    def wait(self, deadline) -> None:
        """Wait for all workers, then let them continue, or tell all of them what is wrong."""
        try:
            while not self.fault and len(self.arrived) < len(self.addresses) - 1:
                if (left := deadline - time.monotonic()) <= 0:
                    self.fault = self._missing()
                    break
                self._handle(min(left, 1))
            self._answer()
        finally:
            for connection in [*self.callers, *self.arrived.values()]:
                self._close(connection)
            self.selector.close()
        if self.fault:
            raise UserError(self.fault)

    def _handle(self, seconds):
        """Hear everyone who calls or says something within some seconds."""
        for key, _ in self.selector.select(seconds):
            if key.fileobj is self.listener:
                self._accept()
            elif key.fileobj in self.callers:
                self._hear(key.fileobj)
            elif key.fileobj in self.arrived.values():  # a worker says one line, so this one left; it may call again
                self._close(key.fileobj)

    def _accept(self):
        try:
            connection, _ = self.listener.accept()
        except OSError:  # the caller has left, or too many files are open: make room for the next
            self._drop_oldest()
            return
        connection.setblocking(False)
        self.callers[connection] = bytearray()
        self.selector.register(connection, selectors.EVENT_READ)
        if len(self.callers) > bounds.limit('meeting_callers'):
            self._drop_oldest()

    def _drop_oldest(self):
        if self.callers:
            self._close(next(iter(self.callers)))

    def _hear(self, connection):
        said, most = self.callers[connection], bounds.limit('meeting_bytes')
        try:
            data = connection.recv(most)
        except OSError:
            data = b''
        said += data
        if not data or len(said) > most:
            self._close(connection)
        elif b'\n' in said:
            try:
                self._admit(connection, *_opened(self.token, 'call', bytes(said.partition(b'\n')[0])))
            except Exception:  # a stranger says anything, to which a parser may raise anything, as RecursionError
                self._close(connection)

    def _admit(self, connection, fields, has_token):
        """Let a caller arrive, or find the fault. An Exception means that the caller is not a worker."""
        number, theirs = fields['worker'], fields['of']
        if type(number) is not int or not isinstance(theirs, str):
            raise ValueError(number)
        if not has_token:
            self.num_refused += 1
            self.callers[connection].clear()  # it will close the connection
            connection.send(_line(self.token, 'answer', fault='another token'))
            return
        if theirs != _listing(self.addresses):
            self.fault = (
                f'worker {number} was started with the workers {one_line(theirs.rpartition(" ")[0][:200])}, the chief '
                f'with {",".join(self.addresses)[:200]}; pass the same list to all'
            )
        elif not 0 < number < len(self.addresses):
            raise ValueError(number)
        elif number in self.arrived:
            self.fault = f'two processes are worker {number}; give each its own --task_index'
        else:
            del self.callers[connection]
            self.arrived[number] = connection
        if self.fault:  # which it is told, too
            del self.callers[connection]
            self.arrived[-1] = connection

    def _missing(self):
        missing = [f'{i} ({self.addresses[i]})' for i in range(1, len(self.addresses)) if i not in self.arrived]
        refused = f' ({self.num_refused} calls had another --worker_token)' if self.num_refused else ''
        return f'worker {", ".join(missing)} did not arrive{refused}; start all workers again, within minutes'

    def _answer(self):
        """Answer all who have arrived, and let them close first, so that the port is free at once."""
        line, end = _line(self.token, 'answer', fault=self.fault), time.monotonic() + _PARTING
        for connection in list(self.arrived.values()):
            try:
                connection.send(line)  # which fits into the buffer of a connection
            except OSError:
                self._close(connection)
        self.selector.unregister(self.listener)
        while self.arrived and (left := end - time.monotonic()) > 0:
            for key, _ in self.selector.select(left):
                self._close(key.fileobj)

    def _close(self, connection):
        self.callers.pop(connection, None)
        for number in [number for number, other in self.arrived.items() if other is connection]:
            del self.arrived[number]
        self.selector.unregister(connection)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_WAIT)
        connection.close()


def _call_chief(addresses, index, token, deadline):
    """Tell the chief that this worker has arrived, and wait until all have."""
    reason = 'no answer'
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection(split(addresses[0]), timeout=min(left, 10)) as connection:
                connection.sendall(_line(token, 'call', worker=index, of=_listing(addresses)))
                line = _read_line(connection, deadline + _LATE)
            answer, has_token = _opened(token, 'answer', line)
            fault = answer['fault']
        except OSError as error:
            reason = error.strerror or str(error)
        except Exception:  # as for the chief, see _hear
            reason = 'another program answers there'
        else:
            if not has_token:
                raise UserError(
                    f"worker {index} and the chief at '{addresses[0]}' have different tokens; pass the same "
                    '--worker_token to all workers'
                )
            if fault:
                raise UserError(one_line(fault)[:1000])
            return
        time.sleep(0.2)
    raise UserError(
        f"worker {index} did not reach the chief at '{addresses[0]}' ({reason}); check the address and "
        'start all workers again, within minutes'
    )


def _read_line(connection, deadline):
    """Return the line that the other side says until the deadline."""
    said = bytearray()
    while b'\n' not in said:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        data = connection.recv(bounds.limit('meeting_bytes'))
        if not data:
            raise ConnectionError(0, 'the chief ended')
        said += data
        if len(said) > bounds.limit('meeting_bytes'):
            raise ValueError(len(said))
    return bytes(said)
