//! Servers that stand in for those in a guest. Each says byte for byte what a test wants it to.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use super::Server;

/// A request as a guest's server got it.
#[derive(Debug)]
pub struct Heard {
    /// The whole head, lines in lower case but for their values.
    pub head: Vec<String>,
}

impl Heard {
    /// Reads a head.
    pub fn read(stream: &TcpStream) -> Self {
        let mut reader = BufReader::with_capacity(1, stream.try_clone().unwrap());
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 || line == "\r\n" {
                return Self { head };
            }
            head.push(line.trim_end().to_owned());
        }
    }

    /// The first line.
    pub fn line(&self) -> &str {
        self.head.first().map_or("", String::as_str)
    }

    /// The values of a header.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let pairs = self.head.iter().skip(1).filter_map(|line| line.split_once(": "));
        pairs.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value).collect()
    }

    /// The one value of a header, or the empty text.
    pub fn one(&self, name: &str) -> &str {
        let all = self.all(name);
        assert!(all.len() <= 1, "{name}: {all:?}");
        all.first().copied().unwrap_or_default()
    }
}

impl Server {
    /// Puts a server on a port of every guest.
    pub fn listen(&self, port: u16, serve: impl Fn(TcpStream) + Clone + Send + 'static) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        self.world.engine.knobs.servers.lock().unwrap().insert(port, address);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let serve = serve.clone();
                std::thread::spawn(move || serve(stream));
            }
        });
    }

    /// A server that answers every request with the same bytes, and tells what it heard.
    pub fn answers(&self, port: u16, answer: &[u8]) -> mpsc::Receiver<Heard> {
        let (told, heard) = mpsc::channel();
        let answer = answer.to_vec();
        self.listen(port, move |mut stream| {
            let _ = told.send(Heard::read(&stream));
            let _ = stream.write_all(&answer);
        });
        heard
    }
}

/// What a server heard, soon.
pub fn next(heard: &mpsc::Receiver<Heard>) -> Heard {
    heard.recv_timeout(Duration::from_secs(10)).unwrap()
}

/// Reads whatever comes, for ever.
pub fn swallow(mut stream: TcpStream) {
    let mut buf = [0; 4096];
    while stream.read(&mut buf).is_ok_and(|count| count > 0) {}
}

/// A plain answer.
pub const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
