//! The fake servers of the internet, at every address. What one does depends on its port:
//!
//! | port | |
//! |---|---|
//! | 80, 8000, 8080 | HTTP ([`super::web`]) |
//! | 443, 8443 | TLS, if the lab has it ([`super::tls`]); what the client says first is kept |
//! | 53, 5353 | DNS ([`super::resolver`]) |
//! | 22, 25, 853, 5000 | says hello, then repeats what it hears |
//! | 5001 | hears and says nothing |
//! | 5002 | says zeros for ever |
//! | 5003 | never reads |

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::time::{sleep, timeout};

use super::journal::{Journal, canonical};
use super::web::Web;
use super::zone::Zone;
use super::{resolver, web};

/// Addresses of the servers that repeat datagrams.
const ECHOES: [&str; 7] = [
    "203.0.113.10:123",
    "203.0.113.10:443",
    "203.0.113.10:5000",
    "203.0.113.11:123",
    "198.51.100.7:123",
    "198.51.100.7:443",
    "[2001:db8:1::10]:123",
];
/// Addresses of those who answer DNS by UDP: the resolver, and some that nobody should ask.
const RESOLVERS: [&str; 5] = [
    "192.0.2.53:53",
    "8.8.8.8:53",
    "8.8.8.8:5353",
    "[2001:4860:4860::8888]:53",
    "[2001:db8:53::53]:53",
];
/// Ports of the servers of TCP.
const PORTS: [u16; 14] = [22, 25, 53, 80, 443, 853, 5000, 5001, 5002, 5003, 5353, 8000, 8080, 8443];
/// Where the TLS server of the lab listens, inside the internet.
pub(super) const TLS_PORT: u16 = 4433;
/// How long nothing may happen in a connection.
const PATIENCE: Duration = Duration::from_secs(120);

/// What all servers share.
#[derive(Clone, Default)]
pub struct Servers {
    /// Where they note what they see.
    pub journal: Journal,
    /// What the resolvers know.
    pub zone: Zone,
    /// What the servers of HTTP have.
    pub web: Web,
}

impl Servers {
    /// Begins to serve, in the namespace of the calling thread and its runtime.
    pub fn start(&self) -> Result<()> {
        for address in ECHOES {
            let socket = datagrams(address)?;
            tokio::spawn(echo(socket, self.journal.clone()));
        }
        for address in RESOLVERS {
            let socket = datagrams(address)?;
            tokio::spawn(resolver::datagrams(socket, self.journal.clone(), self.zone.clone()));
        }
        for port in PORTS {
            let socket = TcpSocket::new_v6()?;
            socket.set_reuseaddr(true)?;
            socket.bind(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port))?;
            tokio::spawn(self.clone().accept(socket.listen(1024)?));
        }
        Ok(())
    }

    async fn accept(self, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(self.clone().serve(stream))),
                Err(_) => sleep(Duration::from_millis(10)).await,
            }
        }
    }

    async fn serve(self, stream: TcpStream) {
        let (Ok(to), Ok(from)) = (stream.local_addr(), stream.peer_addr()) else { return };
        let (to, from) = (canonical(to), canonical(from));
        let connection =
            Heard { journal: self.journal.clone(), id: self.journal.connection(to, from) };
        let _ = stream.set_nodelay(true);
        // However it ends, it is over: the other side has its own view.
        let _ = match to.port() {
            80 | 8000 | 8080 => web::serve(stream, to, &self.web, &connection).await,
            443 | 8443 => relay(stream, &connection).await,
            53 | 5353 => {
                resolver::stream(stream, to, &self.journal, connection.id, &self.zone).await
            }
            5001 => sink(stream, &connection).await,
            5002 => source(stream).await,
            5003 => {
                sleep(PATIENCE).await;
                Ok(())
            }
            _ => hello(stream, to, &connection).await,
        };
    }
}

/// A connection in the journal, until it is over.
pub struct Heard {
    journal: Journal,
    id: u64,
}

impl Heard {
    /// Reads more, and notes it.
    pub async fn read(
        &self,
        from: &mut (impl AsyncReadExt + Unpin),
        buffer: &mut [u8],
    ) -> std::io::Result<usize> {
        let read = timeout(PATIENCE, from.read(buffer)).await??;
        self.journal.said(self.id, &buffer[..read]);
        Ok(read)
    }
}

impl Drop for Heard {
    fn drop(&mut self) {
        self.journal.closed(self.id);
    }
}

fn datagrams(address: &str) -> Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind(address).with_context(|| format!("no {address}"))?;
    socket.set_nonblocking(true)?;
    Ok(UdpSocket::from_std(socket)?)
}

async fn echo(socket: UdpSocket, journal: Journal) {
    let Ok(own) = socket.local_addr() else { return };
    let mut buffer = vec![0; 65_536];
    loop {
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
        journal.datagram(own, &buffer[..length]);
        let _ = socket.send_to(&buffer[..length], client).await;
    }
}

async fn hello(mut stream: TcpStream, to: SocketAddr, heard: &Heard) -> std::io::Result<()> {
    stream.write_all(format!("hello from {}\n", to.ip()).as_bytes()).await?;
    let mut buffer = vec![0; 65_536];
    loop {
        match heard.read(&mut stream, &mut buffer).await? {
            0 => return Ok(()),
            read => stream.write_all(&buffer[..read]).await?,
        }
    }
}

async fn sink(mut stream: TcpStream, heard: &Heard) -> std::io::Result<()> {
    let mut buffer = vec![0; 1 << 18];
    while heard.read(&mut stream, &mut buffer).await? > 0 {}
    Ok(())
}

async fn source(mut stream: TcpStream) -> std::io::Result<()> {
    let zeros = vec![0; 1 << 16];
    loop {
        timeout(PATIENCE, stream.write_all(&zeros)).await??;
    }
}

/// Lets the server of TLS answer, and keeps what the client says.
async fn relay(mut client: TcpStream, heard: &Heard) -> std::io::Result<()> {
    let mut buffer = vec![0; 1 << 14];
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", TLS_PORT)).await else {
        // Nobody does TLS: what is said is kept all the same.
        while heard.read(&mut client, &mut buffer).await? > 0 {}
        return Ok(());
    };
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let down = tokio::io::copy(&mut from_server, &mut to_client);
    let up = async {
        loop {
            match heard.read(&mut from_client, &mut buffer).await? {
                0 => return to_server.shutdown().await,
                read => to_server.write_all(&buffer[..read]).await?,
            }
        }
    };
    tokio::pin!(down);
    tokio::select! {
        done = &mut down => done.map(|_| ()),
        done = up => {
            done?;
            down.await.map(|_| ())
        }
    }
}
