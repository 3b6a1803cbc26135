"""A `Circle` around vectors on a device, through pinned memory: copies go on beside messages, segment by segment."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dml_hpc.comm.circle import Circle
from dml_hpc.comm.elements import adder
from dml_hpc.comm.on_device.places import Pinned
from dml_hpc.device import Array, Device, Event

if TYPE_CHECKING:
    from mpi4py.MPI import Comm


class StagedCircle:
    """Sums ``vector`` (count,), of ``dtype``, in place over ``comm``; ``owned`` is what this rank has the sum of first.

    With ``weights`` (count,) fused updates can be made. The methods are collective, return the bytes sent, and leave
    copies to the device queued: work that is queued after them finds what they bring.
    """

    def __init__(self, comm: Comm, device: Device, vector: Array, dtype: str, weights: Array | None = None):
        place, add = Pinned(device), adder(dtype)
        self._device, self._vector, self._weights = device, vector, weights
        self._staging = self._staged_weights = place.zeros(len(vector), vector.dtype)
        self._downloads: dict[int, Event] = {}
        self._began = self._uploaded = device.mark()

        def landed(piece: slice) -> None:
            self._upload(vector, self._staging, piece)

        self._circle = Circle(comm, [self._staging], self._staging, add, place.segment_bytes, self._wait_for, landed)
        self._update_circle: Circle | None = None
        if weights is not None:
            self._staged_weights = place.zeros(len(vector), weights.dtype)
            self._update_circle = Circle(comm, [self._staging], self._staged_weights, add, place.segment_bytes,
                                         self._wait_for,
                                         lambda piece: self._upload(weights, self._staged_weights, piece))
        self.owned = self._circle.owned

    def allreduce(self) -> int:
        """Make the vector the sum of all ranks' vectors."""
        self._begin(self._circle)
        sent = self._circle.allreduce(lambda piece: self._upload(self._vector, self._staging, piece))
        self._device.follow(self._uploaded)
        return sent

    def reduce_scatter(self) -> int:
        """Make what is ``owned`` of the vector the sum."""
        self._begin(self._circle)
        sent = self._circle.reduce_scatter()
        self._upload(self._vector, self._staging, slice(*self.owned))
        self._device.follow(self._uploaded)
        return sent

    def allgather(self) -> int:
        """Bring what each rank owns of its vector to all."""
        own = slice(*self.owned)
        self._uploaded.wait()
        self._began = self._device.mark()
        if own.start < own.stop:
            self._device.download(self._staging[own], self._vector[own]).wait()
        sent = self._circle.allgather()
        self._device.follow(self._uploaded)
        return sent

    def reduce_update(self, update: Callable[[slice], object]) -> int:
        """Sum; as soon as a piece of what is ``owned`` is summed, call ``update(piece)``; bring the weights to all.

        ``update`` finds the piece's sum in the vector, and queues the writing of its weights.
        """
        circle, weights = self._update_circle, self._weights
        assert circle is not None and weights is not None

        def finished(piece: slice) -> None:
            self._upload(self._vector, self._staging, piece)
            self._device.follow(self._uploaded)
            update(piece)
            if piece.start < piece.stop:
                self._device.download(self._staged_weights[piece], weights[piece]).wait()

        self._begin(circle)
        sent = circle.allreduce(finished)
        self._device.follow(self._uploaded)
        return sent

    def free(self) -> None:
        """Give back what MPI holds, and leave no copy under way."""
        self._uploaded.wait()
        self._circle.free()
        if self._update_circle is not None:
            self._update_circle.free()

    def _begin(self, circle: Circle) -> None:
        """Queue the vector's way down, in the order in which its pieces are needed."""
        self._uploaded.wait()  # it reads what messages are to be written to
        self._began = self._device.mark()
        for piece in circle.pieces:
            if piece.start < piece.stop:
                self._downloads[piece.start] = self._device.download(self._staging[piece], self._vector[piece])

    def _wait_for(self, piece: slice) -> None:
        if piece.start < piece.stop:
            self._downloads.pop(piece.start).wait()

    def _upload(self, target: Array, source: Array, piece: slice) -> None:
        """Queue a piece's way up, beside other work: it was last used by what was queued when the call began."""
        if piece.start < piece.stop:
            self._uploaded = self._device.upload(target[piece], source[piece], self._began)
