"""Processes, threads, signals and files as a Python script has them. Prints `storm.py: ok`."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time

# Children in plenty, each with its own status, reaped in any order.
expected = {}
for number in range(150):
    pid = os.fork()
    if pid == 0:
        os._exit(number % 100)
    expected[pid] = number % 100
while expected:
    pid, status = os.wait()
    assert expected.pop(pid) == os.waitstatus_to_exitcode(status)

# Programs, with pipes to and from them.
for number in range(30):
    done = subprocess.run(["sort", "-n"], input=b"3\n1\n2\n", capture_output=True, check=True)
    assert done.stdout == b"1\n2\n3\n"
pipeline = subprocess.Popen("seq 1 20000 | md5sum", shell=True, stdout=subprocess.PIPE)
text = "".join(f"{number}\n" for number in range(1, 20001)).encode()
assert pipeline.communicate()[0].split()[0].decode() == hashlib.md5(text).hexdigest()

# Signals that arrive while the script computes.
count = 0


def on_signal(*_):
    global count
    count += 1


signal.signal(signal.SIGALRM, on_signal)
signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
while count < 50:
    hashlib.sha256(b"x" * 4096).digest()
signal.setitimer(signal.ITIMER_REAL, 0)

# A child that dies of a bad access, one that is killed.
for how, number in (("import os; os.abort()", signal.SIGABRT),
                    ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", signal.SIGSEGV),
                    ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", signal.SIGKILL)):
    assert subprocess.run([sys.executable, "-S", "-c", how]).returncode == -number

# Threads that share a counter, a queue of words, and files.
lock, ready, words, total = threading.Lock(), threading.Condition(), [], 0


def producer(which):
    for number in range(200):
        with ready:
            words.append(which * 1000 + number)
            ready.notify()


def consumer():
    global total
    for _ in range(200):
        with ready:
            while not words:
                ready.wait()
            word = words.pop()
        with lock:
            total += word


threads = [threading.Thread(target=producer, args=(which,)) for which in range(8)]
threads += [threading.Thread(target=consumer) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert total == sum(which * 1000 + number for which in range(8) for number in range(200))


def writer(which):
    path = f"/root/storm-{which}"
    for turn in range(10):
        data = bytes([which * 16 + turn]) * 50000
        with open(path, "wb") as file:
            file.write(data)
            os.fsync(file.fileno())
        with open(path, "rb") as file:
            assert file.read() == data
    os.unlink(path)


failed = []
threading.excepthook = lambda what: failed.append(what)
threads = [threading.Thread(target=writer, args=(which,)) for which in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not failed, failed

# The clock goes on, and never back.
last = time.monotonic_ns()
for _ in range(100000):
    now = time.monotonic_ns()
    assert now >= last
    last = now
print("storm.py: ok")
