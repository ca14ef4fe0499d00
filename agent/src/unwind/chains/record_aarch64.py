#!/usr/bin/env python3
"""Runs aarch64.elf instruction by instruction, and writes aarch64.steps: what is true of its stack.

    aarch64-linux-gnu-gcc -O2 -g0 -ffreestanding -nostdlib -static -fno-stack-protector \
        -fasynchronous-unwind-tables -Wl,--build-id=none -o aarch64.elf aarch64.c
    aarch64-linux-gnu-strip aarch64.elf
    qemu-aarch64-static -cpu max -g 2159 aarch64.elf &  # from Debian's package qemu-user-static
    ./record_aarch64.py 2159 > aarch64.steps

One line for each instruction that was reached, for the first time: pc, sp, x29 and x30; the words of
the stack from sp on; the addresses that the functions which are active will return to, innermost first, for
which each call was watched. A signal's handler returns to the instruction that was interrupted, with a mark."""

import socket
import sys

CALLS = ((0xFC000000, 0x94000000), (0xFFFFFC1F, 0xD63F0000))  # bl, blr
SVC, SIGRETURN = 0xD4000001, 0xD2801168  # svc #0; mov x8, #139
SIGUSR1 = "1e"  # as gdb numbers signals


class Gdb:
    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""

    def ask(self, command):
        total = sum(command.encode()) & 0xFF
        self.socket.sendall(f"${command}#{total:02x}".encode())
        while True:
            start = self.buffer.find(b"$")
            end = self.buffer.find(b"#", start)
            if start >= 0 and end >= 0 and len(self.buffer) >= end + 3:
                answer, self.buffer = self.buffer[start + 1 : end], self.buffer[end + 3 :]
                self.socket.sendall(b"+")
                return answer.decode()
            self.buffer += self.socket.recv(1 << 16)

    def registers(self):
        data = bytes.fromhex(self.ask("g")[: 33 * 16])
        return [int.from_bytes(data[8 * i : 8 * i + 8], "little") for i in range(33)]

    def read(self, addr, size):
        answer = self.ask(f"m{addr:x},{size:x}")
        return b"" if answer.startswith("E") else bytes.fromhex(answer)


def main():
    gdb = Gdb(int(sys.argv[1]))
    gdb.ask("?")
    top = gdb.registers()[31] + 8
    seen, calls, before = set(), [], 0
    while True:
        regs = gdb.registers()
        pc, sp = regs[32], regs[31]
        # A call is over when its return address is reached with a stack as high as it was.
        while calls and calls[-1][0] == pc and calls[-1][1] <= sp:
            calls.pop()
        if pc not in seen:
            seen.add(pc)
            data = b"".join(gdb.read(at, min(512, top - at)) for at in range(sp, top, 512))
            words = [int.from_bytes(data[i : i + 8], "little") for i in range(0, len(data), 8)]
            callers = [mark + format(addr, "x") for addr, _, mark in reversed(calls)]
            line = [format(r, "x") for r in (pc, sp, regs[29], regs[30])]
            print(" ".join(line), pack(words), " ".join(callers), sep=";", flush=True)
        instruction = int.from_bytes(gdb.read(pc, 4), "little")
        is_call = any(instruction & mask == value for mask, value in CALLS)
        answer = gdb.ask("s")
        if answer[0] in "WX":
            return
        if answer[1:3] == SIGUSR1:
            # It gets its signal; the handler returns to the trampoline, and that to where it hit.
            # Its first instruction has stored 16 bytes below the signal frame.
            gdb.ask("vCont;S" + SIGUSR1)
            handler = gdb.registers()
            interrupted = int.from_bytes(gdb.read(handler[31] + 16 + 568, 8), "little")
            calls.append((interrupted, 1 << 63, "!"))
            calls.append((handler[30], handler[31], ""))
        elif instruction == SVC and before == SIGRETURN:
            calls.pop()
        elif is_call:
            calls.append((pc + 4, sp, ""))
        before = instruction


def pack(words):
    """Zeros in a row are a count with a star."""
    out, zeros = [], 0
    for word in words + [None]:
        if word == 0:
            zeros += 1
            continue
        if zeros:
            out.append(f"*{zeros:x}")
            zeros = 0
        if word is not None:
            out.append(format(word, "x"))
    return " ".join(out)


main()
