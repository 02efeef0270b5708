//! The connection to the agent: who is at its ends, and the credit of both (virtio 1.2, section
//! 5.10.6.3).
//!
//! ```text
//!   towards the host      taken ≤ received ≤ announced + BUFFER
//!   towards the guest     guest_taken ≤ sent ≤ guest_taken + guest_buffer
//! ```
//!
//! All of them count bytes since the connection began and wrap around. The left side of the second
//! line is the guest's word; one that contradicts it has no credit.

use serde::{Deserialize, Serialize};

use super::packet::{Header, STREAM, op};
use super::{AGENT_PORT, GUEST_CID, HOST_CID};

/// Bytes that the guest may have sent and that nobody has taken yet.
pub const BUFFER: u32 = 256 * 1024;

/// First port that needs no privilege: `LAST_RESERVED_PORT` of Linux' `af_vsock.c`, and one more.
const FIRST_FREE_PORT: u32 = 1024;

/// The guest sent more than it knew to have room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overrun;

/// An open connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    guest_port: u32,
    /// The guest has not been told that it is open.
    response_due: bool,
    /// The guest has asked for its credit.
    update_due: bool,
    /// Bytes that came from the guest.
    received: u32,
    /// Those of them that have left the buffer.
    taken: u32,
    /// What the guest knows of `taken`.
    announced: u32,
    /// Bytes that were sent to the guest.
    sent: u32,
    /// The guest's buffer, as it last said.
    guest_buffer: u32,
    /// Bytes that left it, as it last said.
    guest_taken: u32,
}

impl Connection {
    /// Opens the connection that a packet asks for, if it is one for the agent.
    pub fn accept(request: &Header) -> Option<Self> {
        let wanted = request.op == op::REQUEST
            && request.kind == STREAM
            && (request.src_cid, request.dst_cid) == (GUEST_CID, HOST_CID)
            && request.dst_port == AGENT_PORT
            && request.src_port < FIRST_FREE_PORT;
        wanted.then_some(Self {
            guest_port: request.src_port,
            response_due: true,
            update_due: false,
            received: 0,
            taken: 0,
            announced: 0,
            sent: 0,
            guest_buffer: request.buf_alloc,
            guest_taken: request.fwd_cnt,
        })
    }

    /// As a snapshot has it: what came and was not passed on is nobody's any more.
    pub fn saved(&self) -> Self {
        Self { taken: self.received, ..self.clone() }
    }

    /// Whether a saved one is possible.
    pub fn is_possible(&self) -> bool {
        self.guest_port < FIRST_FREE_PORT
            && self.taken == self.received
            && self.taken.wrapping_sub(self.announced) <= BUFFER
    }

    /// Whether a packet of the guest belongs to it.
    pub fn owns(&self, packet: &Header) -> bool {
        packet.kind == STREAM
            && (packet.src_cid, packet.dst_cid) == (GUEST_CID, HOST_CID)
            && (packet.src_port, packet.dst_port) == (self.guest_port, AGENT_PORT)
    }

    /// Notes the credit that every packet brings.
    pub fn hear(&mut self, packet: &Header) {
        self.guest_buffer = packet.buf_alloc;
        self.guest_taken = packet.fwd_cnt;
        self.update_due |= packet.op == op::CREDIT_REQUEST;
    }

    /// Notes that `len` bytes have come. What counts is the room that the guest knows of: one that
    /// sends into room it was not told of would get further ahead of `announced` with each packet.
    pub fn receive(&mut self, len: u32) -> Result<(), Overrun> {
        if len > BUFFER - self.received.wrapping_sub(self.announced) {
            return Err(Overrun);
        }
        self.received = self.received.wrapping_add(len);
        Ok(())
    }

    /// Notes that `len` of the bytes that have come left the buffer.
    pub fn take(&mut self, len: u32) {
        self.taken = self.taken.wrapping_add(len);
        debug_assert!(self.received.wrapping_sub(self.taken) <= BUFFER);
    }

    /// Bytes that may be sent to the guest now.
    pub fn credit(&self) -> u32 {
        self.guest_buffer.saturating_sub(self.sent.wrapping_sub(self.guest_taken))
    }

    /// What the guest has to be told before it gets data.
    ///
    /// An update is due when half of the buffer became free since the last one: early enough that a
    /// guest which knows of no room always gets one, since all that it sent is taken in the end.
    pub fn due(&self) -> Option<u16> {
        if self.response_due {
            return Some(op::RESPONSE);
        }
        let freed = self.taken.wrapping_sub(self.announced);
        (self.update_due || freed >= BUFFER / 2).then_some(op::CREDIT_UPDATE)
    }

    /// The header of a packet with `len` bytes to the guest, which is sent at once.
    pub fn packet(&mut self, op: u16, len: u32) -> Header {
        debug_assert!(len <= self.credit());
        self.response_due &= op != op::RESPONSE;
        self.update_due = false;
        self.announced = self.taken;
        self.sent = self.sent.wrapping_add(len);
        Header {
            src_cid: HOST_CID,
            dst_cid: GUEST_CID,
            src_port: AGENT_PORT,
            dst_port: self.guest_port,
            len,
            kind: STREAM,
            op,
            flags: 0,
            buf_alloc: BUFFER,
            fwd_cnt: self.taken,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Header {
        Header {
            src_cid: GUEST_CID,
            dst_cid: HOST_CID,
            src_port: 1000,
            dst_port: AGENT_PORT,
            kind: STREAM,
            op: op::REQUEST,
            buf_alloc: 1000,
            ..Header::default()
        }
    }

    fn open() -> Connection {
        let mut connection = Connection::accept(&request()).unwrap();
        assert_eq!(connection.due(), Some(op::RESPONSE));
        let packet = connection.packet(op::RESPONSE, 0);
        assert_eq!((packet.buf_alloc, packet.fwd_cnt), (BUFFER, 0));
        connection
    }

    #[test]
    fn only_the_agent_is_accepted() {
        let wrong: [fn(&mut Header); 6] = [
            |it| it.op = op::RESPONSE,
            |it| it.kind = 2,
            |it| it.src_cid = 4,
            |it| it.dst_cid = 1,
            |it| it.dst_port = 1025,
            |it| it.src_port = 1024,
        ];
        for (case, change) in wrong.iter().enumerate() {
            let mut packet = request();
            change(&mut packet);
            assert_eq!(Connection::accept(&packet), None, "case {case}");
        }
    }

    #[test]
    fn the_guest_may_fill_the_buffer_and_no_more() {
        let mut connection = open();
        assert_eq!(connection.receive(BUFFER), Ok(()));
        assert_eq!(connection.receive(1), Err(Overrun));
        assert_eq!(connection.receive(0), Ok(()));
        connection.take(10);
        assert_eq!(connection.receive(10), Err(Overrun), "it was not told of that room");
        assert!(connection.saved().is_possible());
        connection.packet(op::CREDIT_UPDATE, 0);
        assert_eq!(connection.receive(11), Err(Overrun));
        assert_eq!(connection.receive(u32::MAX), Err(Overrun));
        assert_eq!(connection.receive(10), Ok(()));
    }

    #[test]
    fn updates_come_with_half_of_the_buffer_or_on_request() {
        let mut connection = open();
        connection.receive(BUFFER).unwrap();
        connection.take(BUFFER / 2 - 1);
        assert_eq!(connection.due(), None);
        connection.take(1);
        assert_eq!(connection.due(), Some(op::CREDIT_UPDATE));
        assert_eq!(connection.packet(op::CREDIT_UPDATE, 0).fwd_cnt, BUFFER / 2);
        assert_eq!(connection.due(), None);
        connection.hear(&Header { op: op::CREDIT_REQUEST, ..request() });
        assert_eq!(connection.due(), Some(op::CREDIT_UPDATE));
        connection.packet(op::RW, 1);
        assert_eq!(connection.due(), None, "data carries the credit too");
    }

    #[test]
    fn data_stays_within_the_guests_credit() {
        let mut connection = open();
        assert_eq!(connection.credit(), 1000);
        connection.packet(op::RW, 700);
        assert_eq!(connection.credit(), 300);
        connection.hear(&Header { fwd_cnt: 500, ..request() });
        assert_eq!(connection.credit(), 800);
        // A guest that takes its word back, or claims what it was never sent.
        connection.hear(&Header { buf_alloc: 10, fwd_cnt: 500, ..request() });
        assert_eq!(connection.credit(), 0);
        connection.hear(&Header { buf_alloc: 1000, fwd_cnt: 701, ..request() });
        assert_eq!(connection.credit(), 0);
    }

    #[test]
    fn counts_wrap_around() {
        let mut connection = open();
        let mut total = 0_u32;
        for _ in 0..(u64::from(u32::MAX) / u64::from(BUFFER) + 2) {
            connection.hear(&Header { buf_alloc: BUFFER, fwd_cnt: total, ..request() });
            assert_eq!(connection.credit(), BUFFER);
            connection.receive(BUFFER).unwrap();
            connection.take(BUFFER);
            total = total.wrapping_add(BUFFER);
            assert_eq!(connection.packet(op::RW, BUFFER).fwd_cnt, total);
        }
        assert!(total < BUFFER * 2, "it has wrapped");
    }
}
