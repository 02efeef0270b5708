//! Sockets of the host: the other end of every flow.
//!
//! They never block, and every one is connected to a single address, so that nobody else is heard.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrAny, SocketFlags, SocketType, connect, getsockname, ipproto,
    socket_with, sockopt,
};

/// A port to ask the kernel about; nothing is sent there.
const ANY_PORT: u16 = 9;

/// Begins a connection. It is made, or has failed, once the socket is writable:
/// [`outcome`] says which.
pub fn connect_tcp(server: SocketAddr) -> io::Result<OwnedFd> {
    let socket = open(server, SocketType::STREAM)?;
    // Small messages are the guest's to gather.
    sockopt::set_tcp_nodelay(&socket, true)?;
    match connect(&socket, &server) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(errno) => Err(errno.into()),
    }
}

/// What became of a connection.
pub fn outcome(socket: impl AsFd) -> io::Result<()> {
    sockopt::socket_error(socket)?.map_err(io::Error::from)
}

/// A socket that sends datagrams to one address and hears it alone, from a port that the kernel
/// chose at random.
pub fn connect_udp(server: SocketAddr) -> io::Result<OwnedFd> {
    let socket = open(server, SocketType::DGRAM)?;
    connect(&socket, &server)?;
    Ok(socket)
}

/// What an address is to this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// There is a way to it.
    Elsewhere,
    /// It is this host itself.
    Own,
    /// There is no way to it, such as to any IPv6 address on many hosts.
    Nowhere,
}

/// The packets that loopback carries: 65,536 bytes, of which IPv4 has a name for one less. No link to
/// elsewhere does.
const LOOPBACK_MTU: u32 = 65_535;

/// Where an address is at this moment, whatever name or interface it came by. The kernel is asked,
/// without a packet: it would talk to itself from the same address, from loopback, or, if whole
/// networks are its own by a route (`ip route add local`), over loopback from another address.
pub fn place(address: IpAddr) -> Place {
    let ask = || -> io::Result<(IpAddr, u32)> {
        let socket = connect_udp(SocketAddr::new(address, ANY_PORT))?;
        let mtu = match address {
            IpAddr::V4(_) => sockopt::ip_mtu(&socket)?,
            IpAddr::V6(_) => sockopt::ipv6_mtu(&socket)?,
        };
        Ok((local(&socket)?.ip().to_canonical(), mtu))
    };
    match ask() {
        Ok((from, _)) if from == address.to_canonical() || from.is_loopback() => Place::Own,
        Ok((_, mtu)) if mtu >= LOOPBACK_MTU => Place::Own,
        Ok(_) => Place::Elsewhere,
        Err(_) => Place::Nowhere,
    }
}

fn local(socket: impl AsFd) -> io::Result<SocketAddr> {
    let address: SocketAddrAny = getsockname(socket)?;
    SocketAddr::try_from(address).map_err(io::Error::from)
}

fn open(server: SocketAddr, kind: SocketType) -> io::Result<OwnedFd> {
    let family = if server.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let protocol = if kind == SocketType::STREAM { ipproto::TCP } else { ipproto::UDP };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(family, kind, flags, Some(protocol))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_knows_itself() {
        for own in ["127.0.0.1", "127.9.9.9", "0.0.0.0", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(place(own.parse().unwrap()), Place::Own, "{own}");
        }
        // Documentation's, and so nobody's, with a route or without.
        assert_ne!(place("203.0.113.9".parse().unwrap()), Place::Own);
    }
}
