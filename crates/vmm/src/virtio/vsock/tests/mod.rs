//! What the device does, seen from a driver and from the other end of the socket.

mod guest;
mod transfer;

use super::connection::BUFFER;
use super::device::MAX_REFUSALS;
use super::packet::{HEADER_LEN, Header, op};
use super::{AGENT_PORT, GUEST_CID, HOST_CID};
use crate::virtio::device::{Broken, Device, DeviceState};
use guest::{Guest, PORT, TX_PAYLOAD, socket_pair};

#[test]
fn bytes_go_both_ways() {
    let mut guest = Guest::connected();
    guest.write(b"hello");
    assert_eq!(guest.host_write(b"hi"), 2);
    guest.work();
    assert_eq!(guest.host_read(100), b"hello");
    let (header, payload) = guest.inbox.pop_front().unwrap();
    assert_eq!(payload, b"hi");
    assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, GUEST_CID));
    assert_eq!((header.src_port, header.dst_port), (AGENT_PORT, PORT));
    assert_eq!((header.op, header.buf_alloc, header.fwd_cnt), (op::RW, BUFFER, 5));
    assert!(guest.inbox.is_empty());
}

#[test]
fn the_configuration_is_the_guests_address() {
    let guest = Guest::new();
    assert_eq!(guest.device.config(), [3, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!((guest.device.kind(), guest.device.features()), (19, 0));
}

#[test]
fn everything_else_is_refused_and_the_stream_goes_on() {
    let mut guest = Guest::connected();
    let agent = guest.header(op::REQUEST);
    let wrong = [
        // Other ports, addresses and kinds of socket; a second connection; data and answers to
        // nothing; an operation that does not exist.
        Header { src_port: 1001, dst_port: 22, ..agent },
        Header { src_port: 5000, ..agent },
        Header { dst_cid: 7, ..agent },
        Header { src_cid: 9, ..agent },
        Header { kind: 2, src_port: 1001, ..agent },
        Header { kind: 0, ..agent },
        Header { src_port: 1001, ..agent },
        Header { op: op::RW, src_port: 1001, ..agent },
        Header { op: op::RESPONSE, src_port: 1001, ..agent },
        Header { op: 77, src_port: 1001, ..agent },
    ];
    for packet in wrong {
        guest.send(packet, b"payload");
        guest.work();
        let (answer, payload) = guest.inbox.pop_front().unwrap();
        assert_eq!(answer.op, op::RST, "{packet:?}");
        assert_eq!((answer.src_cid, answer.src_port), (packet.dst_cid, packet.dst_port));
        assert_eq!((answer.dst_cid, answer.dst_port), (packet.src_cid, packet.src_port));
        assert_eq!((answer.kind, payload.len()), (packet.kind, 0));
    }
    guest.send(Header { op: op::RST, src_port: 1001, ..agent }, &[]);
    guest.write(b"still here");
    guest.work();
    assert!(guest.inbox.is_empty(), "a refusal is never answered");
    assert_eq!(guest.host_read(100), b"still here");
}

#[test]
fn refusals_are_bounded_and_none_is_lost() {
    let mut guest = Guest::bare();
    let total = 3 * MAX_REFUSALS;
    let mut sent = 0;
    while sent < total && !guest.tx.free.is_empty() {
        while sent < total && !guest.tx.free.is_empty() {
            guest.send(Header { src_port: 5000 + sent as u32, ..guest.header(op::REQUEST) }, &[]);
            sent += 1;
        }
        guest.work();
    }
    // The device has as many as it wants and the queue is full of the rest.
    assert_eq!(sent, MAX_REFUSALS + 32);
    assert!(!guest.turn().unwrap(), "it must not spin meanwhile");
    guest.give_rx(1);
    guest.work();
    assert_eq!(guest.inbox.len(), 1);
    for _ in 0..sent {
        guest.give_rx(usize::MAX);
        guest.work();
    }
    let ports = guest.inbox.iter().map(|(header, _)| header.dst_port - 5000).collect::<Vec<_>>();
    assert_eq!(ports, (0..sent as u32).collect::<Vec<_>>());
}

#[test]
fn more_than_the_credit_ends_the_connection() {
    let mut guest = Guest::connected();
    let mut sent = 0;
    // Nobody reads at the other end: the socket takes a little, the buffer the rest.
    while guest.inbox.is_empty() {
        guest.write(&[7; TX_PAYLOAD]);
        guest.work();
        sent += TX_PAYLOAD;
        assert!(sent < 2 * BUFFER as usize, "it takes without end");
    }
    assert!(sent > BUFFER as usize);
    assert_eq!(guest.ops(), [op::RST]);
    assert_eq!(guest.interest(), (false, false), "nothing is kept");
    guest.connect(PORT);
}

#[test]
fn the_guest_gets_its_credit_back() {
    let mut guest = Guest::connected();
    let mut sent = 0;
    while sent + TX_PAYLOAD <= BUFFER as usize {
        guest.write(&[7; TX_PAYLOAD]);
        guest.work();
        sent += TX_PAYLOAD;
    }
    assert!(guest.ops().is_empty());
    assert_eq!(guest.interest(), (true, true));
    let mut read = 0;
    while guest.inbox.is_empty() {
        let bytes = guest.host_read(10_000);
        assert!(!bytes.is_empty(), "there is no update after {read} bytes");
        read += bytes.len();
        guest.work();
    }
    let (update, _) = guest.inbox.pop_front().unwrap();
    assert_eq!(update.op, op::CREDIT_UPDATE);
    assert!(update.fwd_cnt >= BUFFER / 2 && update.fwd_cnt as usize >= read);
    guest.send(guest.header(op::CREDIT_REQUEST), &[]);
    guest.work();
    assert_eq!(guest.ops(), [op::CREDIT_UPDATE]);
}

#[test]
fn the_guest_gets_no_more_than_it_has_room_for() {
    let mut guest = Guest::new();
    guest.buf_alloc = 100;
    guest.connect(PORT);
    guest.host_write(&[7; 300]);
    guest.work();
    assert_eq!(guest.inbox.drain(..).map(|(_, payload)| payload.len()).sum::<usize>(), 100);
    assert_eq!(guest.interest(), (false, false), "waiting for the socket would spin");
    guest.fwd_cnt = 60;
    guest.send(guest.header(op::CREDIT_UPDATE), &[]);
    guest.work();
    assert_eq!(guest.inbox.pop_front().unwrap().1.len(), 60);
}

#[test]
fn it_waits_for_what_it_can_use() {
    let mut guest = Guest::bare();
    assert_eq!(guest.interest(), (false, false), "nobody is connected");
    guest.give_rx(1);
    guest.connect(PORT);
    assert_eq!(guest.interest(), (false, false), "there is no receive buffer");
    guest.give_rx(1);
    guest.work();
    assert_eq!(guest.interest(), (true, false));
    guest.host_write(b"x");
    guest.work();
    assert_eq!(guest.interest(), (false, false), "the buffer is used");
}

#[test]
fn a_supervisor_that_is_gone_is_no_end_of_the_connection() {
    let mut guest = Guest::connected();
    guest.host = socket_pair().0;
    guest.work();
    assert_eq!(guest.interest(), (false, false));
    // Its credit goes on, although nobody reads.
    for _ in 0..200 {
        guest.write(&[7; TX_PAYLOAD]);
        guest.work();
    }
    assert!(guest.ops().iter().all(|&op| op == op::CREDIT_UPDATE));
    assert_eq!(guest.interest(), (false, false));
    // The same when the buffer was full before.
    let mut guest = Guest::connected();
    for _ in 0..8 {
        guest.write(&[7; TX_PAYLOAD]);
    }
    guest.work();
    assert_eq!(guest.interest(), (true, true));
    guest.host = socket_pair().0;
    guest.work();
    assert_eq!((guest.interest(), guest.ops()), ((false, false), vec![]));
}

#[test]
fn the_end_of_a_connection_makes_room_for_the_next() {
    for (end, answers) in [(op::RST, vec![]), (op::SHUTDOWN, vec![op::RST]), (99, vec![op::RST])] {
        let mut guest = Guest::connected();
        guest.send(guest.header(end), &[]);
        guest.work();
        assert_eq!(guest.ops(), answers, "{end}");
        guest.connect(1001);
        guest.send(Header { src_port: 1001, ..guest.header(op::RW) }, b"second");
        guest.work();
        assert_eq!(guest.host_read(100), b"second");
    }
    // The port of a connection that the guest forgot about.
    let mut guest = Guest::connected();
    guest.send(guest.header(op::REQUEST), &[]);
    guest.work();
    assert_eq!(guest.ops(), [op::RST]);
    guest.connect(PORT);
}

#[test]
fn the_drivers_reset_ends_everything_but_the_socket() {
    let mut guest = Guest::connected();
    guest.device.reset_transport();
    guest.device.reset();
    guest.connect(PORT);
    guest.write(b"again");
    guest.work();
    assert_eq!(guest.host_read(100), b"again");
}

#[test]
fn the_child_of_a_fork_goes_on_with_its_own_socket() {
    let mut guest = Guest::connected();
    for _ in 0..20 {
        guest.write(&[7; TX_PAYLOAD]);
    }
    guest.work();
    assert_eq!(guest.interest(), (true, true));
    let (host, stream) = socket_pair();
    // The parent's end stays open, as it does in another process.
    let _parents = std::mem::replace(&mut guest.host, host);
    guest.device.replace_stream(stream.into());
    guest.work();
    // All that was sent counts as taken, and the stream goes on with what comes next.
    let (update, _) = guest.inbox.pop_front().unwrap();
    assert_eq!((update.op, update.fwd_cnt as usize), (op::CREDIT_UPDATE, 20 * TX_PAYLOAD));
    assert_eq!(guest.interest(), (true, false));
    guest.write(b"to the child");
    guest.host_write(b"from the child");
    guest.work();
    assert_eq!(guest.host_read(100), b"to the child");
    assert_eq!(guest.inbox.pop_front().unwrap().1, b"from the child");
}

#[test]
fn a_device_without_a_socket_gets_one() {
    let mut guest = Guest::connected();
    guest.device = super::Vsock::new(None);
    guest.connect(PORT);
    guest.write(b"to nobody");
    guest.work();
    let (host, stream) = socket_pair();
    guest.host = host;
    guest.device.replace_stream(stream.into());
    guest.write(b"to somebody");
    guest.work();
    assert_eq!(guest.interest(), (true, false));
    assert_eq!(guest.host_read(100), b"to somebody");
}

#[test]
fn a_restored_guest_is_told_and_nothing_is_established_before_it_has_understood() {
    let mut guest = Guest::connected();
    guest.give_event();
    guest.give_event();
    guest.device.reset_transport();
    guest.restored();
    guest.work();
    assert_eq!(guest.events(), [[0, 0, 0, 0]]);
    // The old connection is unknown, a new one waits.
    guest.write(b"old");
    guest.send(Header { src_port: 1001, ..guest.header(op::REQUEST) }, &[]);
    guest.host_write(b"new");
    guest.work();
    assert_eq!((guest.ops(), guest.interest()), (vec![], (false, false)));
    guest.give_event();
    guest.work();
    assert_eq!(guest.ops(), [op::RST, op::RESPONSE, op::RW]);
    assert_eq!(guest.host_read(100), b"");
    assert_eq!(guest.events(), [[0; 4]; 0], "told once");
}

#[test]
fn the_agents_connection_goes_on_in_a_restored_guest() {
    let mut guest = Guest::connected();
    guest.write(b"to nobody any more");
    guest.work();
    guest.give_event();
    guest.restored();
    guest.work();
    guest.write(b"to the new one");
    guest.host_write(b"from the new one");
    guest.work();
    assert_eq!(guest.host_read(100), b"to the new one");
    assert_eq!(guest.inbox.pop_front().unwrap().1, b"from the new one");
    assert_eq!(guest.events(), [[0; 4]; 0]);
}

#[test]
fn an_impossible_connection_is_refused() {
    let DeviceState::Vsock { connection: Some(good), .. } = Guest::connected().device.save() else {
        panic!("it has a connection");
    };
    assert!(good.is_possible());
    let mut guest = Guest::new();
    let both = DeviceState::Vsock { connection: Some(good), told: Some(1) };
    assert!(guest.device.restore(both).is_err(), "a guest that hears of a reset has none");
}

#[test]
fn a_restored_guest_may_have_no_event_buffer_yet() {
    let mut guest = Guest::new();
    guest.restored();
    guest.send(guest.header(op::REQUEST), &[]);
    guest.work();
    assert_eq!((guest.ops(), guest.events().len()), (vec![], 0));
    guest.give_event();
    guest.work();
    assert_eq!((guest.ops(), guest.events().len()), (vec![], 1));
    guest.give_event();
    guest.work();
    assert_eq!(guest.ops(), [op::RESPONSE]);
}

#[test]
fn a_snapshot_between_event_and_acknowledgement_waits_for_the_same_one() {
    let mut guest = Guest::connected();
    guest.give_event();
    guest.give_event();
    guest.device.reset_transport();
    guest.restored();
    guest.work();
    assert!(matches!(guest.device.save(), DeviceState::Vsock { connection: None, told: Some(2) }));
    guest.restored();
    guest.work();
    assert_eq!(guest.events().len(), 1, "a second event would be acknowledged by the first one");
    guest.send(guest.header(op::REQUEST), &[]);
    guest.work();
    assert!(guest.ops().is_empty());
    // What the guest asks for too early is no part of a snapshot either.
    assert!(matches!(guest.device.save(), DeviceState::Vsock { connection: None, told: Some(2) }));
    guest.give_event();
    guest.work();
    assert_eq!(guest.ops(), [op::RESPONSE]);
    assert!(matches!(guest.device.save(), DeviceState::Vsock { connection: Some(_), told: None }));
}

#[test]
fn a_state_of_another_device_is_refused() {
    assert!(Guest::new().device.restore(DeviceState::Nothing).is_err());
}

#[test]
fn packets_that_are_none_break_the_device() {
    let broken = |bytes: &[u8], parts: &[u32]| {
        let mut guest = Guest::connected();
        guest.send_raw(bytes, parts);
        guest.turn().unwrap_err()
    };
    let header = Header { len: 101, ..Guest::new().header(op::RW) }.bytes();
    assert_eq!(broken(&header, &[43]), Broken("a packet shorter than its header"));
    assert_eq!(broken(&header, &[20, 23]), Broken("a packet shorter than its header"));
    assert_eq!(broken(&header, &[44, 100]), Broken("a packet longer than its buffer"));

    for len in [0, 1, HEADER_LEN as u32] {
        let mut guest = Guest::bare();
        guest.give_rx_of(len);
        assert_eq!(guest.turn(), Err(Broken("a receive buffer without room for data")));
    }
    let mut guest = Guest::bare();
    guest.give_rx_of(HEADER_LEN as u32 + 1);
    guest.connect(PORT);
}

#[test]
fn a_length_beyond_everything_is_a_violation_of_credit() {
    let mut guest = Guest::connected();
    for len in [BUFFER + 1, u32::MAX] {
        let header = Header { len, ..guest.header(op::RW) };
        guest.send_raw(&header.bytes(), &[HEADER_LEN as u32]);
        guest.work();
        assert_eq!(guest.ops(), [op::RST]);
        guest.connect(PORT);
    }
}
