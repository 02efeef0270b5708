//! Random progress of everybody, checked against what was sent.

use proptest::prelude::*;

use super::super::connection::BUFFER;
use super::super::packet::{Header, op};
use super::guest::{Guest, PORT, TX_PAYLOAD};
use crate::virtio::device::Device;

/// What somebody does next, and how much of it.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The agent writes, within its credit.
    GuestWrites(usize),
    /// The agent takes what has arrived, and says so or not.
    GuestReads(usize, bool),
    GivesBuffers(usize),
    HostWrites(usize),
    HostReads(usize),
    AsksForCredit,
    Turn,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1..=TX_PAYLOAD).prop_map(Step::GuestWrites),
        2 => (1..5000_usize, any::<bool>()).prop_map(|(n, told)| Step::GuestReads(n, told)),
        2 => (1..32_usize).prop_map(Step::GivesBuffers),
        2 => (1..6000_usize).prop_map(Step::HostWrites),
        2 => (1..50_000_usize).prop_map(Step::HostReads),
        1 => Just(Step::AsksForCredit),
        5 => Just(Step::Turn),
    ]
}

/// An agent and a supervisor that count what they send, so that the n-th byte is known.
struct Model {
    guest: Guest,
    /// Bytes that each side sent and got so far.
    guest_sent: usize,
    host_got: usize,
    host_sent: usize,
    guest_got: usize,
    /// Bytes that have arrived in the guest and were not read.
    unread: u32,
    /// The device's buffer, as it last said.
    host_taken: u32,
}

fn pattern(from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(|n| (n * 31 + n / 251) as u8).collect()
}

impl Model {
    fn new(buf_alloc: u32) -> Self {
        let mut guest = Guest::new();
        guest.buf_alloc = buf_alloc;
        guest.connect(PORT);
        Self {
            guest,
            guest_sent: 0,
            host_got: 0,
            host_sent: 0,
            guest_got: 0,
            unread: 0,
            host_taken: 0,
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::GuestWrites(len) => {
                let credit = BUFFER as usize - (self.guest_sent - self.host_taken as usize);
                let len = len.min(credit);
                if len > 0 && !self.guest.tx.free.is_empty() {
                    self.guest.write(&pattern(self.guest_sent, len));
                    self.guest_sent += len;
                }
            }
            Step::GuestReads(len, told) => {
                let len = self.unread.min(len as u32);
                self.unread -= len;
                self.guest.fwd_cnt += len;
                if told && !self.guest.tx.free.is_empty() {
                    self.guest.send(self.guest.header(op::CREDIT_UPDATE), &[]);
                }
            }
            Step::GivesBuffers(count) => self.guest.give_rx(count),
            Step::HostWrites(len) => {
                self.host_sent += self.guest.host_write(&pattern(self.host_sent, len));
            }
            Step::HostReads(len) => {
                let bytes = self.guest.host_read(len);
                assert_eq!(bytes, pattern(self.host_got, bytes.len()));
                self.host_got += bytes.len();
            }
            Step::AsksForCredit => {
                if !self.guest.tx.free.is_empty() {
                    self.guest.send(self.guest.header(op::CREDIT_REQUEST), &[]);
                }
            }
            Step::Turn => {
                self.guest.turn().unwrap();
            }
        }
        self.take_packets();
    }

    fn take_packets(&mut self) {
        while let Some((header, payload)) = self.guest.inbox.pop_front() {
            assert!([op::RW, op::CREDIT_UPDATE].contains(&header.op), "{header:?}");
            assert!(
                header.fwd_cnt >= self.host_taken && header.fwd_cnt as usize <= self.guest_sent
            );
            self.host_taken = header.fwd_cnt;
            assert_eq!(payload, pattern(self.guest_got, payload.len()));
            self.guest_got += payload.len();
            self.unread += payload.len() as u32;
            assert!(self.unread <= self.guest.buf_alloc, "more than the guest has room for");
        }
    }

    /// Everybody does what he can until everything has arrived.
    fn drain(&mut self) {
        for _ in 0..10_000 {
            let done = self.host_got == self.guest_sent && self.guest_got == self.host_sent;
            if done && self.unread == 0 {
                return;
            }
            self.step(Step::GivesBuffers(usize::MAX));
            self.step(Step::GuestReads(usize::MAX, true));
            self.step(Step::Turn);
            self.step(Step::HostReads(usize::MAX >> 40));
        }
        panic!("{} of {} bytes arrived", self.host_got + self.guest_got, self.guest_sent);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_byte_arrives_once_and_in_order(
        buf_alloc in prop_oneof![1..2000_u32, Just(BUFFER)],
        steps in proptest::collection::vec(step(), 0..400),
    ) {
        let mut model = Model::new(buf_alloc);
        steps.into_iter().for_each(|step| model.step(step));
        model.drain();
        // Nothing is left to do, and it works on.
        model.guest.work();
        model.take_packets();
        prop_assert_eq!(model.guest.interest(), (true, false));
        model.step(Step::GuestWrites(10));
        model.drain();
    }

    #[test]
    fn no_packet_makes_it_grow_or_panic(
        packets in proptest::collection::vec(
            (
                (2..4_u64, 2..4_u64, 999..1002_u32, 1023..1026_u32, 0..3_u16, 0..9_u16),
                (any::<u32>(), any::<u32>(), 0..TX_PAYLOAD, any::<bool>()),
            ),
            0..300,
        ),
    ) {
        let mut guest = Guest::new();
        for ((src_cid, dst_cid, src_port, dst_port, kind, op), rest) in packets {
            let (buf_alloc, fwd_cnt, len, reset) = rest;
            let flags = 0;
            let header = Header {
                src_cid, dst_cid, src_port, dst_port, len: 0, kind, op, flags, buf_alloc, fwd_cnt,
            };
            if guest.tx.free.is_empty() {
                guest.work();
                guest.give_rx(usize::MAX);
                guest.inbox.clear();
                guest.work();
            }
            if reset && len % 16 == 0 {
                guest.device.reset();
            }
            guest.send(header, &vec![1; len]);
            let turned = guest.turn();
            prop_assert!(turned.is_ok(), "{:?}", turned);
            prop_assert!(guest.device.held() <= BUFFER as usize);
        }
    }
}
