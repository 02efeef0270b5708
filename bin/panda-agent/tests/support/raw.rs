//! The agent protocol without a client.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use pandastack_proto::{
    Decoder, Encoder, Frame, Hello, Incoming, Kind, Outcome, Request, Sealed, VERSION, nonce_from,
    parse,
};

/// A host without manners: raw frames.
pub struct RawHost {
    pub socket: UnixStream,
    decoder: Decoder,
}

impl RawHost {
    pub fn greet(socket: UnixStream, seed: u8) -> Self {
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let nonce = nonce_from([seed; 16]);
        let mut out = Encoder::new();
        out.magic();
        out.message(Kind::Hello, 0, &Hello { version: VERSION, nonce }).unwrap();
        (&socket).write_all(out.pending()).unwrap();
        Self { socket, decoder: Decoder::for_host(&nonce) }
    }

    pub fn request(&mut self, stream: u32, request: Request) {
        let mut out = Encoder::new();
        out.message(Kind::Request, stream, &Sealed { token: [0; 16], request }).unwrap();
        self.socket.write_all(out.pending()).unwrap();
    }

    /// Reads on until the reply to `stream`.
    pub fn reply(&mut self, stream: u32) -> Outcome {
        self.find(|frame| {
            let it = frame.kind == Kind::Reply && frame.stream == stream;
            it.then(|| parse(frame.payload, "reply").unwrap())
        })
    }

    /// Reads on until a frame of `stream`; its kind.
    pub fn frame(&mut self, stream: u32) -> Kind {
        self.find(|frame| (frame.stream == stream).then_some(frame.kind))
    }

    fn find<T>(&mut self, mut wanted: impl FnMut(Frame<'_>) -> Option<T>) -> T {
        loop {
            while let Some(incoming) = self.decoder.next().unwrap() {
                if let Incoming::Frame(frame) = incoming
                    && let Some(found) = wanted(frame)
                {
                    return found;
                }
            }
            let count = self.socket.read(self.decoder.space()).unwrap();
            assert_ne!(count, 0, "the agent hung up");
            self.decoder.commit(count);
        }
    }
}
