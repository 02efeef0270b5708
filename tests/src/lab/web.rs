//! The fake servers of HTTP/1.1: the same at every address, so that who answered is to be seen.
//!
//! | target | answer |
//! |---|---|
//! | a file that the lab has for the host | it |
//! | `/bytes/N` | N zeros |
//! | `/drip/N` | N times 16 bytes, one every 50 ms |
//! | `/hang` | none |
//! | `/to/URL` | 302 to it |
//! | any other | `address=… host=… method=… target=… received=…` |

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::servers::Heard;

/// Longest head of a request.
const MAX_HEAD: usize = 64 << 10;

type Files = BTreeMap<(String, String), Arc<Vec<u8>>>;

/// Files by host and path.
#[derive(Clone, Default)]
pub struct Web(Arc<Mutex<Files>>);

impl Web {
    /// Puts a file under a host, with which it is asked for, and a path.
    pub fn put(&self, host: &str, path: &str, content: &[u8]) {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        files.insert((host.to_owned(), path.to_owned()), Arc::new(content.to_vec()));
    }

    fn get(&self, host: &str, path: &str) -> Option<Arc<Vec<u8>>> {
        let files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        files.get(&(host.to_owned(), path.to_owned())).cloned()
    }
}

struct Request {
    method: String,
    target: String,
    host: String,
    length: usize,
    last: bool,
}

/// Serves one connection until somebody has had enough.
pub async fn serve(
    mut stream: TcpStream,
    to: SocketAddr,
    web: &Web,
    heard: &Heard,
) -> io::Result<()> {
    let mut unread = Vec::new();
    while let Some(request) = request(&mut stream, heard, &mut unread).await? {
        let received = body(&mut stream, heard, &mut unread, request.length).await?;
        respond(&mut stream, to, web, &request, received).await?;
        if request.last {
            break;
        }
    }
    stream.shutdown().await
}

/// The next request's head; nothing where the client is done.
async fn request(
    stream: &mut TcpStream,
    heard: &Heard,
    unread: &mut Vec<u8>,
) -> io::Result<Option<Request>> {
    let mut buffer = [0; 4096];
    let end = loop {
        if let Some(end) = unread.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        let read = heard.read(stream, &mut buffer).await?;
        if read == 0 || unread.len() > MAX_HEAD {
            return Ok(None);
        }
        unread.extend_from_slice(&buffer[..read]);
    };
    let head: Vec<u8> = unread.drain(..end).collect();
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut lines = head.lines();
    let mut words = lines.next().unwrap_or_default().split(' ').map(str::to_owned);
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut request =
        Request { method, target, host: String::new(), length: 0, last: head.contains("HTTP/1.0") };
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "host" => request.host = value.to_ascii_lowercase(),
            "content-length" => request.length = value.parse().unwrap_or(0),
            "connection" => request.last |= value.eq_ignore_ascii_case("close"),
            _ => {}
        }
    }
    Ok(Some(request))
}

async fn body(
    stream: &mut TcpStream,
    heard: &Heard,
    unread: &mut Vec<u8>,
    length: usize,
) -> io::Result<usize> {
    let early = unread.len().min(length);
    unread.drain(..early);
    let mut received = early;
    let mut buffer = vec![0; 1 << 16];
    while received < length {
        let room = buffer.len().min(length - received);
        match heard.read(stream, &mut buffer[..room]).await? {
            0 => break,
            read => received += read,
        }
    }
    Ok(received)
}

async fn respond(
    stream: &mut TcpStream,
    to: SocketAddr,
    web: &Web,
    request: &Request,
    received: usize,
) -> io::Result<()> {
    let Request { method, target, host, .. } = request;
    let name = host.split(':').next().unwrap_or_default();
    let path = target.split('?').next().unwrap_or_default();
    let number = |prefix: &str| path.strip_prefix(prefix)?.parse::<usize>().ok();
    if let Some(file) = web.get(name, path) {
        let kind = if path.ends_with('/') { "text/html" } else { "application/octet-stream" };
        return whole(stream, kind, &file).await;
    }
    if let Some(count) = number("/bytes/") {
        stream.write_all(head(200, &format!("Content-Length: {count}\r\n")).as_bytes()).await?;
        let zeros = vec![0; 1 << 16];
        let mut left = count;
        while left > 0 {
            let part = left.min(zeros.len());
            stream.write_all(&zeros[..part]).await?;
            left -= part;
        }
        return Ok(());
    }
    if let Some(count) = number("/drip/") {
        let length = format!("Content-Length: {}\r\n", count * 16);
        stream.write_all(head(200, &length).as_bytes()).await?;
        for _ in 0..count {
            sleep(Duration::from_millis(50)).await;
            stream.write_all(b"drip drip drip \n").await?;
        }
        return Ok(());
    }
    if path == "/hang" {
        sleep(Duration::from_secs(120)).await;
        return Ok(());
    }
    if let Some(url) = target.strip_prefix("/to/") {
        let fields = format!("Location: {url}\r\nContent-Length: 0\r\n");
        return stream.write_all(head(302, &fields).as_bytes()).await;
    }
    let text = format!(
        "address={} host={host} method={method} target={target} received={received}\n",
        to.ip()
    );
    whole(stream, "text/plain", text.as_bytes()).await
}

async fn whole(stream: &mut TcpStream, kind: &str, body: &[u8]) -> io::Result<()> {
    let fields = format!("Content-Type: {kind}\r\nContent-Length: {}\r\n", body.len());
    stream.write_all(head(200, &fields).as_bytes()).await?;
    stream.write_all(body).await
}

fn head(status: u16, fields: &str) -> String {
    format!("HTTP/1.1 {status} Lab\r\n{fields}\r\n")
}
