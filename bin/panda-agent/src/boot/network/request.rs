//! Requests to the kernel's networking (rtnetlink(7)), one at a time, each with its answer.
//!
//! ```text
//!   nlmsghdr(16) ─ body of the kind ─ attribute(4) value … ─ attribute(4) value …
//! ```
//!
//! Everything is aligned to four bytes and in the byte order of the machine, but for addresses.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with, sockopt,
};

/// The kernel answers before the request's system call returns.
const PATIENCE: Duration = Duration::from_secs(1);

const HEADER: usize = 16;
/// `nlmsgerr`: an errno, and the request that it is about.
const ANSWER: usize = HEADER + 4 + HEADER;

/// A socket to the kernel's networking.
pub struct Kernel(OwnedFd);

impl Kernel {
    pub fn connect() -> rustix::io::Result<Self> {
        // The family's protocol 0 is NETLINK_ROUTE.
        let (kind, flags) = (SocketType::RAW, SocketFlags::CLOEXEC);
        let socket = socket_with(AddressFamily::NETLINK, kind, flags, None)?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE))?;
        Ok(Self(socket))
    }

    /// Sets the longest packet and brings the interface up.
    pub fn bring_up(&self, index: u32, mtu: u16) -> rustix::io::Result<()> {
        let up = (libc::IFF_UP as u32).to_ne_bytes();
        let mut request = Request::new(libc::RTM_NEWLINK, 0);
        // ifinfomsg: family and type, the interface, its flags, which of them are meant.
        request.put(&[0; 4]).put(&index.to_ne_bytes()).put(&up).put(&up);
        request.attribute(libc::IFLA_MTU, &u32::from(mtu).to_ne_bytes());
        self.ask(request)
    }

    /// Gives the interface an address, without asking the network whether somebody else has it.
    pub fn add_address(&self, index: u32, own: IpAddr, prefix: u8) -> rustix::io::Result<()> {
        let mut request = Request::new(libc::RTM_NEWADDR, CREATE);
        // ifaddrmsg: family, prefix, flags, scope, the interface.
        let flags = if own.is_ipv6() { libc::IFA_F_NODAD as u8 } else { 0 };
        request.put(&[family(own), prefix, flags, libc::RT_SCOPE_UNIVERSE]);
        request.put(&index.to_ne_bytes());
        for kind in [libc::IFA_LOCAL, libc::IFA_ADDRESS] {
            request.attribute(kind, &octets(own));
        }
        self.ask(request)
    }

    /// Notes a neighbour's hardware address for good.
    pub fn add_neighbour(
        &self,
        index: u32,
        neighbour: IpAddr,
        mac: [u8; 6],
    ) -> rustix::io::Result<()> {
        let mut request = Request::new(libc::RTM_NEWNEIGH, CREATE);
        // ndmsg: family, padding, the interface, its state, flags and type.
        request.put(&[family(neighbour), 0, 0, 0]).put(&index.to_ne_bytes());
        request.put(&libc::NUD_PERMANENT.to_ne_bytes()).put(&[0, 0]);
        request.attribute(libc::NDA_DST, &octets(neighbour));
        request.attribute(libc::NDA_LLADDR, &mac);
        self.ask(request)
    }

    /// Sends everything that has no better way to a neighbour.
    pub fn add_gateway(&self, index: u32, gateway: IpAddr) -> rustix::io::Result<()> {
        let mut request = Request::new(libc::RTM_NEWROUTE, CREATE);
        // rtmsg: family, prefixes of destination and source, type of service, table, origin,
        // scope, type, flags.
        request.put(&[family(gateway), 0, 0, 0]).put(&[
            libc::RT_TABLE_MAIN,
            libc::RTPROT_BOOT,
            libc::RT_SCOPE_UNIVERSE,
            libc::RTN_UNICAST,
        ]);
        request.put(&[0; 4]);
        request.attribute(libc::RTA_GATEWAY, &octets(gateway));
        request.attribute(libc::RTA_OIF, &index.to_ne_bytes());
        self.ask(request)
    }

    fn ask(&self, request: Request) -> rustix::io::Result<()> {
        send(&self.0, &request.finish(), SendFlags::empty())?;
        // The answer repeats the request, of which only the header matters.
        let mut answer = [0; ANSWER];
        let (length, _) = recv(&self.0, &mut answer, RecvFlags::TRUNC)?;
        outcome(answer.get(..length).unwrap_or(&answer))
    }
}

/// What an answer says.
fn outcome(answer: &[u8]) -> rustix::io::Result<()> {
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let code = answer.get(HEADER..HEADER + 4).and_then(|bytes| bytes.try_into().ok());
    match (kind, code.map(i32::from_ne_bytes)) {
        (Some(kind), Some(0)) if i32::from(kind) == libc::NLMSG_ERROR => Ok(()),
        (Some(kind), Some(code @ -4095..0)) if i32::from(kind) == libc::NLMSG_ERROR => {
            Err(Errno::from_raw_os_error(-code))
        }
        _ => Err(Errno::PROTO),
    }
}

/// It must not be there yet.
const CREATE: i32 = libc::NLM_F_CREATE | libc::NLM_F_EXCL;

/// A request that grows.
struct Request(Vec<u8>);

impl Request {
    fn new(kind: u16, flags: i32) -> Self {
        let flags = (flags | libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        let mut request = Self(vec![0; 4]);
        request.put(&kind.to_ne_bytes()).put(&flags.to_ne_bytes()).put(&[0; 8]);
        request
    }

    fn put(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend(bytes);
        self
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = (4 + value.len()) as u16;
        self.put(&length.to_ne_bytes()).put(&kind.to_ne_bytes()).put(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        let length = (self.0.len() as u32).to_ne_bytes();
        self.0[..4].copy_from_slice(&length);
        self.0
    }
}

fn family(address: IpAddr) -> u8 {
    let family = if address.is_ipv6() { libc::AF_INET6 } else { libc::AF_INET };
    family as u8
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn attributes_are_aligned_and_counted() {
        let mut request = Request::new(28, CREATE);
        request.attribute(2, &[1, 2, 3, 4, 5, 6]);
        request.attribute(1, &octets(Ipv4Addr::LOCALHOST.into()));
        let bytes = request.finish();
        assert_eq!(bytes.len(), 16 + 12 + 8);
        assert_eq!(bytes[..8], [36, 0, 0, 0, 28, 0, 5, 6]);
        assert_eq!(bytes[16..28], [10, 0, 2, 0, 1, 2, 3, 4, 5, 6, 0, 0]);
        assert_eq!(bytes[28..], [8, 0, 1, 0, 127, 0, 0, 1]);
    }

    #[test]
    fn only_an_acknowledgement_is_a_success() {
        let answer = |kind: u16, code: i32| {
            let mut bytes = vec![36, 0, 0, 0];
            bytes.extend(kind.to_ne_bytes());
            bytes.extend([0; 10]);
            bytes.extend(code.to_ne_bytes());
            outcome(&bytes)
        };
        assert_eq!(answer(2, 0), Ok(()));
        assert_eq!(answer(2, -17), Err(Errno::EXIST));
        assert_eq!(answer(2, i32::MIN), Err(Errno::PROTO));
        assert_eq!(answer(2, 5), Err(Errno::PROTO));
        assert_eq!(answer(16, 0), Err(Errno::PROTO));
        assert_eq!(outcome(&[]), Err(Errno::PROTO));
    }

    /// What it refuses is an interface that does not exist, so it understood the rest.
    #[test]
    fn the_kernel_understands_what_it_is_asked() {
        const NOWHERE: u32 = 0x7fff_fff0;
        let Ok(kernel) = Kernel::connect() else { return eprintln!("skipped: no netlink") };
        let own = IpAddr::from([198, 18, 0, 2]);
        for refused in [
            kernel.bring_up(NOWHERE, 1500),
            kernel.add_address(NOWHERE, own, 24),
            kernel.add_neighbour(NOWHERE, own, [2; 6]),
            kernel.add_gateway(NOWHERE, own),
        ] {
            let errno = refused.unwrap_err();
            let expected = [Errno::NODEV, Errno::NETUNREACH, Errno::PERM];
            assert!(expected.contains(&errno), "{errno}");
        }
    }
}
