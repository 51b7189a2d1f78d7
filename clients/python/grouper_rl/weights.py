"""A policy as bytes: safetensors streamed tensor by tensor, or handles of CUDA memory that another process opens."""

from __future__ import annotations

import base64
import ctypes
import json
import struct
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

CHUNK = 4 << 20
PREFIXES = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile put before every name
DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "int64": "I64",
          "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL"}


def named_tensors(source: Any) -> dict[str, Any]:
    """The tensors of a module or a state dict, under the names of the hub. Of tensors that share their memory
    (a tied output matrix) the first alone is kept."""
    state: Mapping[str, Any] = source.state_dict() if hasattr(source, "state_dict") else source
    out, seen = {}, set()
    for name, tensor in state.items():
        while name.startswith(PREFIXES):
            name = name.split(".", 1)[1]
        where = (tensor.data_ptr(), tuple(tensor.shape)) if hasattr(tensor, "data_ptr") else id(tensor)
        if where not in seen:
            out[name] = tensor
            seen.add(where)
    return out


def dtype_name(tensor: Any) -> str:
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise TypeError(f"tensors of {name} can't be sent")
    return DTYPES[name]


def num_bytes(tensor: Any) -> int:
    return int(tensor.nbytes)


def raw(tensor: Any) -> memoryview:
    """The bytes of a tensor in C order, on the host."""
    if not isinstance(tensor, np.ndarray):
        torch = sys.modules["torch"]
        tensor = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8))


def safetensors(tensors: Mapping[str, Any]) -> tuple[int, Iterator[memoryview | bytes]]:
    """A safetensors file: its length, and its bytes. One tensor at a time is on the host."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + num_bytes(tensor)
        header[name] = {"dtype": dtype_name(tensor), "shape": list(tensor.shape), "data_offsets": [begin, end]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)

    def stream() -> Iterator[memoryview | bytes]:
        yield struct.pack("<Q", len(head)) + head
        for tensor in tensors.values():
            data = raw(tensor)
            for start in range(0, len(data), CHUNK):
                yield data[start:start + CHUNK]

    return 8 + len(head) + end, stream()


def parts(tensors: Mapping[str, Any], limit: int) -> list[dict[str, Any]]:
    """The tensors in pieces of at most `limit` bytes, or of one tensor that is larger."""
    out: list[dict[str, Any]] = [{}]
    room = limit
    for name, tensor in tensors.items():
        if out[-1] and num_bytes(tensor) > room:
            out.append({})
            room = limit
        out[-1][name] = tensor
        room -= num_bytes(tensor)
    return out


def ipc_handles(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The body of `POST /v1/policy/ipc`: where each tensor lies in CUDA memory that another process can open. What was
    launched before is finished when this returns; the tensors must stay as they are until the server has answered."""
    devices = {getattr(tensor, "device", "cpu") for tensor in tensors.values()}
    if len(devices) != 1 or getattr(next(iter(devices)), "type", "cpu") != "cuda":
        raise ValueError(f"CUDA IPC needs all tensors on one GPU, these are on {', '.join(sorted(map(str, devices))) or 'none'}")
    device, torch = devices.pop(), sys.modules["torch"]
    driver, handles = ctypes.CDLL("libcuda.so.1"), {}

    def check(status: int) -> None:
        if status:
            raise RuntimeError(f"CUDA error {status}: memory of this allocator can't be shared between processes (with "
                               "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True it never can)")

    def place(name: str, tensor: Any) -> dict[str, Any]:
        if not tensor.is_contiguous():
            raise ValueError(f"{name} is not contiguous")
        base, size, pointer = ctypes.c_uint64(), ctypes.c_size_t(), tensor.data_ptr()
        check(driver.cuMemGetAddressRange_v2(ctypes.byref(base), ctypes.byref(size), ctypes.c_uint64(pointer)))
        if base.value not in handles:  # a handle stands for a whole allocation, which holds many tensors
            handle = ctypes.create_string_buffer(64)
            check(driver.cuIpcGetMemHandle(handle, base))
            handles[base.value] = base64.b64encode(handle.raw).decode()
        return {"handle": handles[base.value], "offset": pointer - base.value}

    with torch.cuda.device(device):
        torch.cuda.synchronize()
        described = [{"name": name, "dtype": dtype_name(tensor), "shape": list(tensor.shape), **place(name, tensor)}
                     for name, tensor in tensors.items()]
    return {"device_uuid": f"GPU-{torch.cuda.get_device_properties(device).uuid}", "tensors": described}
