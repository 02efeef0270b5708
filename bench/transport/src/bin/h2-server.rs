//! The least that an agent on HTTP/2 would be: answers every request on the socket that is its
//! standard input.

use std::os::fd::{AsFd, OwnedFd};

use bytes::Bytes;
use tokio::net::UnixStream;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let fd: OwnedFd = std::io::stdin().as_fd().try_clone_to_owned().expect("standard input");
    let stream = std::os::unix::net::UnixStream::from(fd);
    stream.set_nonblocking(true).expect("a socket");
    let stream = UnixStream::from_std(stream).expect("a reactor");
    let mut connection = h2::server::handshake(stream).await.expect("a client");
    while let Some(Ok((_request, mut respond))) = connection.accept().await {
        let mut body = respond.send_response(http::Response::new(()), false).expect("a stream");
        body.send_data(Bytes::from_static(b"pong"), true).expect("a window");
    }
}
