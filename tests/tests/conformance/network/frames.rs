//! Ethernet frames, as far as the tests need them: written by hand, so that nothing of what is
//! tested helps to test it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use pandastack_tests::deadline;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

/// The guest's hardware address and its gateway's, as the documentation has them.
pub const GUEST: [u8; 6] = [0x02, 0x50, 0x41, 0x4e, 0x44, 0x41];
pub const GATEWAY: [u8; 6] = [0x02, 0x50, 0x41, 0x4e, 0x47, 0x57];
pub const GUEST_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
pub const GUEST_V6: Ipv6Addr = Ipv6Addr::new(0xfd50, 0x616e, 0x6461, 0, 0, 0, 0, 2);
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd50, 0x616e, 0x6461, 0, 0, 0, 0, 1);

/// Protocols of IP.
const ICMP: u8 = 1;
const UDP: u8 = 17;
/// Kinds of ICMP messages.
const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;

/// The gateway's end of a machine's wire.
pub struct Wire(pub OwnedFd);

impl Wire {
    /// The next frame, if one comes in this time.
    pub fn next(&self, within: Duration) -> Result<Option<Frame>> {
        let end = Instant::now() + within;
        let mut bytes = [0; 4096];
        loop {
            match recv(&self.0, &mut bytes, RecvFlags::TRUNC) {
                Ok((_, 0)) => bail!("the wire is cut"),
                Ok((_, length)) => {
                    ensure!(length <= 1514, "a frame of {length} bytes");
                    return Ok(Some(Frame(bytes[..length].to_vec())));
                }
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let left = Timespec::try_from(left)?;
            match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&left)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The next frame, which must come.
    pub fn frame(&self) -> Result<Frame> {
        match self.next(deadline(Duration::from_secs(20)))? {
            Some(frame) => Ok(frame),
            None => bail!("no frame came"),
        }
    }

    /// Everything that is there, or comes in this time.
    pub fn rest(&self, within: Duration) -> Result<Vec<Frame>> {
        let (mut frames, end) = (Vec::new(), Instant::now() + within);
        while let Some(frame) = self.next(end.saturating_duration_since(Instant::now()))? {
            frames.push(frame);
        }
        Ok(frames)
    }

    /// Sends the guest a frame.
    pub fn send(&self, frame: &Frame) -> Result<()> {
        let sent = send(&self.0, &frame.0, SendFlags::NOSIGNAL)?;
        ensure!(sent == frame.0.len(), "a frame was cut");
        Ok(())
    }
}

/// A frame, without a check sum.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame(pub Vec<u8>);

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        write!(f, "{}", hex(&self.0[..self.0.len().min(80)]))
    }
}

/// A UDP datagram with its addresses.
#[derive(Debug, PartialEq, Eq)]
pub struct Datagram {
    pub from: IpAddr,
    pub to: (IpAddr, u16),
    pub payload: Vec<u8>,
}

impl Frame {
    /// Destination, source and type.
    pub fn ethernet(&self) -> ([u8; 6], [u8; 6], u16) {
        let at = |from: usize| self.0[from..from + 6].try_into().expect("six bytes");
        (at(0), at(6), u16::from_be_bytes([self.0[12], self.0[13]]))
    }

    /// The datagram in a frame from the guest to its gateway.
    pub fn datagram(&self) -> Result<Datagram> {
        let (to, from, kind) = self.ethernet();
        ensure!(to == GATEWAY && from == GUEST, "not from the guest to its gateway: {self:?}");
        let packet = &self.0[14..];
        let (from, to, protocol, header) = match kind {
            0x0800 => {
                let v4 = |at: usize| {
                    Ipv4Addr::new(packet[at], packet[at + 1], packet[at + 2], packet[at + 3])
                };
                (v4(12).into(), v4(16).into(), packet[9], usize::from(packet[0] & 15) * 4)
            }
            0x86dd => {
                let v6 = |at: usize| {
                    let octets: [u8; 16] = packet[at..at + 16].try_into().expect("16 bytes");
                    IpAddr::from(octets)
                };
                (v6(8), v6(24), packet[6], 40)
            }
            other => bail!("type {other:#x}: {self:?}"),
        };
        ensure!(protocol == UDP, "protocol {protocol}: {self:?}");
        let udp = &packet[header..];
        let (port, length) = (number(udp, 2), usize::from(number(udp, 4)));
        ensure!((8..=udp.len()).contains(&length), "a datagram of {length} bytes: {self:?}");
        Ok(Datagram { from, to: (to, port), payload: udp[8..length].to_vec() })
    }

    /// Asks the guest for an echo.
    pub fn echo_request(number: u16, payload: &[u8]) -> Self {
        let mut message = vec![ECHO_REQUEST, 0, 0, 0, 0x70, 0x61];
        message.extend(number.to_be_bytes());
        message.extend(payload);
        let sum = checksum(&message).to_be_bytes();
        message[2..4].copy_from_slice(&sum);
        let length = (20 + message.len()) as u16;
        let mut header = vec![0x45, 0];
        header.extend(length.to_be_bytes());
        header.extend([0, 0, 0, 0, 64, ICMP, 0, 0]);
        header.extend(GATEWAY_V4.octets());
        header.extend(GUEST_V4.octets());
        let sum = checksum(&header).to_be_bytes();
        header[10..12].copy_from_slice(&sum);
        let mut frame = [&GUEST[..], &GATEWAY, &[8, 0]].concat();
        frame.extend(header);
        frame.extend(message);
        Self(frame)
    }

    /// The answer that a host gives to an echo request in this frame: addresses and kind change.
    pub fn echo_reply(&self) -> Result<Self> {
        let (to, from, kind) = self.ethernet();
        let icmp = self.0.get(23) == Some(&ICMP) && self.0.get(34) == Some(&ECHO_REQUEST);
        ensure!(kind == 0x0800 && self.0[14] == 0x45 && icmp, "no echo request: {self:?}");
        let mut reply = self.0.clone();
        reply[..6].copy_from_slice(&from);
        reply[6..12].copy_from_slice(&to);
        reply.copy_within(26..30, 30);
        reply[26..30].copy_from_slice(&self.0[30..34]);
        reply[34] = ECHO_REPLY;
        reply[36..38].fill(0);
        let sum = checksum(&reply[34..]).to_be_bytes();
        reply[36..38].copy_from_slice(&sum);
        Ok(Self(reply))
    }

    /// Whether this is the guest's answer to [`Frame::echo_request`].
    pub fn answers(&self, request: &Frame) -> bool {
        let (to, from, kind) = self.ethernet();
        let addresses = [GUEST_V4.octets(), GATEWAY_V4.octets()].concat();
        // The guest numbers its packets, so their headers differ in more than the addresses.
        to == GATEWAY
            && from == GUEST
            && kind == 0x0800
            && self.0[23] == ICMP
            && self.0[26..34] == addresses
            && self.0[34] == ECHO_REPLY
            && self.0[38..] == request.0[38..]
            && checksum(&self.0[34..]) == 0
    }

    /// Asks who has the guest's address.
    pub fn who_has() -> Self {
        let mut frame = [&[0xff; 6][..], &GATEWAY, &[8, 6]].concat();
        frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend(GATEWAY);
        frame.extend(GATEWAY_V4.octets());
        frame.extend([0; 6]);
        frame.extend(GUEST_V4.octets());
        Self(frame)
    }

    /// Whether the guest says that it has its address.
    pub fn is_at(&self) -> bool {
        let mut said = [0, 1, 8, 0, 6, 4, 0, 2].to_vec();
        said.extend(GUEST);
        said.extend(GUEST_V4.octets());
        said.extend(GATEWAY);
        said.extend(GATEWAY_V4.octets());
        self.ethernet() == (GATEWAY, GUEST, 0x0806) && self.0[14..].starts_with(&said)
    }
}

fn number(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The Internet's check sum (RFC 1071); 0 over what has one that is right.
fn checksum(bytes: &[u8]) -> u16 {
    let words =
        bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
