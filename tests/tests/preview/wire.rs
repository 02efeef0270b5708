//! HTTP byte for byte: a client that says exactly what a test wants.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result};
use pandastack_tests::seconds;

/// Connects to one server, by whatever name a request uses.
#[derive(Clone)]
pub struct Wire {
    address: String,
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let pairs = self.head.lines().filter_map(|line| line.split_once(": "));
        pairs.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }
}

impl Wire {
    pub fn new(url: &str) -> Self {
        Self { address: url.trim_start_matches("http://").to_owned() }
    }

    pub fn port(&self) -> &str {
        self.address.rsplit(':').next().unwrap_or_default()
    }

    pub fn connect(&self) -> Result<TcpStream> {
        let stream = TcpStream::connect(&self.address)?;
        stream.set_read_timeout(Some(Duration::from_secs(seconds(120))))?;
        Ok(stream)
    }

    /// A request without a body; `more` are lines of its head.
    pub fn get(&self, host: &str, path: &str, more: &[&str]) -> Result<Reply> {
        let more: String = more.iter().map(|line| format!("{line}\r\n")).collect();
        self.send(
            format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{more}\r\n")
                .as_bytes(),
        )
    }

    /// Sends bytes and reads the answer to its end.
    pub fn send(&self, request: &[u8]) -> Result<Reply> {
        let mut stream = self.connect()?;
        stream.write_all(request)?;
        reply(stream)
    }
}

/// Reads the head of an answer; the rest stays in the reader.
pub fn head(reader: &mut BufReader<TcpStream>) -> Result<(u16, String)> {
    let mut head = String::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if line.trim_end().is_empty() {
            break;
        }
        head.push_str(&line);
    }
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.with_context(|| format!("no answer: {head:?}"))?, head))
}

fn reply(stream: TcpStream) -> Result<Reply> {
    let mut reader = BufReader::new(stream);
    let (status, head) = head(&mut reader)?;
    let mut body = Vec::new();
    if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        loop {
            let mut size = String::new();
            reader.read_line(&mut size)?;
            let size = usize::from_str_radix(size.trim(), 16).context("a chunk's size")?;
            let from = body.len();
            body.resize(from + size + 2, 0);
            reader.read_exact(&mut body[from..])?;
            body.truncate(from + size);
            if size == 0 {
                break;
            }
        }
    } else {
        reader.read_to_end(&mut body)?;
    }
    Ok(Reply { status, head, body })
}
