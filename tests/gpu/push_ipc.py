#!/usr/bin/env python3
"""Pushes weights into a running server through CUDA IPC and prints how long the engine took no step.

    grouper serve MODEL --device cuda:0 --control-socket /tmp/grouper.sock
    python tests/gpu/push_ipc.py /tmp/grouper.sock MODEL --repeat 5

MODEL is a folder with safetensors. Its tensors are put into one allocation of this process (or, with --torch, become PyTorch tensors of
their own), whose handle is exported once. Needs the driver only; --torch needs PyTorch and safetensors.
"""

import argparse
import base64
import ctypes
import http.client
import json
import pathlib
import socket
import struct
import time

ALIGN = 256


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost")
        self.socket_path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(self.socket_path)


class Cuda:
    """The few driver calls that are needed."""

    def __init__(self, ordinal):
        self.lib = ctypes.CDLL("libcuda.so.1")
        self.call("cuInit", 0)
        self.device = ctypes.c_int()
        self.call("cuDeviceGet", ctypes.byref(self.device), ordinal)
        self.context = ctypes.c_void_p()
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(self.context), self.device)
        self.call("cuCtxSetCurrent", self.context)

    def call(self, name, *args):
        code = getattr(self.lib, name)(*args)
        if code != 0:
            text = ctypes.c_char_p()
            self.lib.cuGetErrorString(code, ctypes.byref(text))
            raise SystemExit(f"{name}: {code} {(text.value or b'').decode()}")

    def uuid(self):
        uuid = (ctypes.c_ubyte * 16)()
        self.call("cuDeviceGetUuid_v2", uuid, self.device)
        return bytes(uuid).hex()

    def alloc(self, size):
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        return address.value

    def upload(self, address, data):
        self.call("cuMemcpyHtoD_v2", ctypes.c_uint64(address), data, ctypes.c_size_t(len(data)))

    def handle(self, address):
        handle = (ctypes.c_ubyte * 64)()
        self.call("cuIpcGetMemHandle", handle, ctypes.c_uint64(address))
        return bytes(handle)

    def synchronize(self):
        self.call("cuCtxSynchronize")


def read_safetensors(path):
    """(name, dtype, shape, bytes) of every tensor."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    for name, info in json.loads(data[8 : 8 + size]).items():
        if name != "__metadata__":
            start, end = info["data_offsets"]
            yield name, info["dtype"], info["shape"], data[8 + size + start : 8 + size + end]


def with_driver(cuda, files):
    """All tensors in one allocation: one handle, many offsets."""
    tensors = [tensor for file in files for tensor in read_safetensors(file)]
    offsets, size = [], 0
    for *_, data in tensors:
        offsets.append(size)
        size += -(-len(data) // ALIGN) * ALIGN
    base = cuda.alloc(size)
    for (*_, data), offset in zip(tensors, offsets):
        cuda.upload(base + offset, data)
    cuda.synchronize()
    handle = base64.b64encode(cuda.handle(base)).decode()
    return [
        {"name": name, "dtype": dtype, "shape": shape, "handle": handle, "offset": offset}
        for (name, dtype, shape, _), offset in zip(tensors, offsets)
    ], base


def with_torch(ordinal, files):
    """Tensors of PyTorch's allocator, as a trainer has them."""
    import torch
    from safetensors.torch import load_file

    state, entries = {}, []
    for file in files:
        state.update(load_file(file, device=f"cuda:{ordinal}"))
    for name, tensor in state.items():
        _, handle, _, storage_offset, *_ = tensor.untyped_storage()._share_cuda_()
        # Newer versions put a version and the letter c before the driver's 64 bytes.
        handle = handle[-64:] if handle[1:2] == b"c" else handle
        offset = storage_offset + tensor.storage_offset() * tensor.element_size()
        handle = base64.b64encode(handle).decode()
        entries.append({"name": name, "dtype": str(tensor.dtype), "shape": list(tensor.shape), "handle": handle, "offset": offset})
    torch.cuda.synchronize()
    return entries, state


def push(path, body):
    connection = UnixConnection(path)
    start = time.perf_counter()
    connection.request("POST", "/v1/policy/ipc", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    reply = json.loads(response.read())
    return response.status, reply, (time.perf_counter() - start) * 1e3


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("socket")
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument("--apply", choices=["finish", "continue", "abort"], default="finish")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--torch", action="store_true", help="export PyTorch tensors")
    parser.add_argument("--forged", action="store_true", help="send a handle that is none; the server must refuse it and serve on")
    args = parser.parse_args()
    files = sorted(args.model.glob("*.safetensors"))
    cuda = Cuda(args.device)
    # `owner` keeps the memory until the last reply.
    tensors, owner = with_torch(args.device, files) if args.torch else with_driver(cuda, files)
    if args.forged:
        for tensor in tensors:
            tensor["handle"] = base64.b64encode(bytes(range(64))).decode()
    body = {"device_uuid": cuda.uuid(), "apply": args.apply, "tensors": tensors}
    for _ in range(args.repeat):
        status, reply, took = push(args.socket, body)
        if status != 200:
            raise SystemExit(f"{status}: {reply['error']['message']}")
        gigabytes = reply["bytes"] / 1e9
        print(
            f"version {reply['version']}  {reply['num_tensors']} tensors, {gigabytes:.2f} GB  stall {reply['stall_ms']:.1f} ms  "
            f"opened {reply['read_ms']:.1f} ms  checked {reply['check_ms']:.1f} ms  wait {reply['wait_ms']:.1f} ms  round trip {took:.1f} ms  rounded {reply['rounded']}  sha256 {reply['sha256'][:16]}"
        )
    del owner


if __name__ == "__main__":
    main()
