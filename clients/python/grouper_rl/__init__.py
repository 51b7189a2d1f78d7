"""Client of grouper: batches of scored rollouts in, weights out.

    for batch in Batches("http://127.0.0.1:8000", num_groups=32):
        learn(batch)
        batch.ack()
"""

from .batches import Batch, Batches
from .checkpoint import Checkpoint
from .client import Client
from .errors import BadRequest, Conflict, Denied, EndOfData, GrouperError, NotFound, NotReady, QueueFull

__all__ = ["BadRequest", "Batch", "Batches", "Checkpoint", "Client", "Conflict", "Denied", "EndOfData", "GrouperError", "NotFound",
           "NotReady", "QueueFull"]
__version__ = "0.1.0"
