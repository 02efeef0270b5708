# Holds connections open, with a little said in each of them all the time: to the server of that
# address, or with `itself` to this very program, which takes a guest as much work and its gateway
# none.
import resource, socket, sys, time

count, place = int(sys.argv[1]), sys.argv[2]
resource.setrlimit(resource.RLIMIT_NOFILE, (2 * count + 100,) * 2)
own = socket.create_server(("127.0.0.1", 0)) if place == "itself" else None
address = own.getsockname() if own else (place, 5000)
held, ends = [], []
while len(held) < count:
    try:
        held.append(socket.create_connection(address, 30))
        if own:
            ends.append(own.accept()[0])
    except OSError as error:
        print(error, file=sys.stderr)
        time.sleep(0.1)
print("there", flush=True)
for connection in held + ends:
    connection.setblocking(False)
# Twenty messages a second altogether: the guest's processor is not what is measured.
n = 0
while True:
    try:
        held[n % count].send(b"tick\n")
        if own:
            ends[n % count].send(ends[n % count].recv(4096))
        held[n % count].recv(4096)
    except OSError:
        pass
    n += 1
    time.sleep(0.05)
