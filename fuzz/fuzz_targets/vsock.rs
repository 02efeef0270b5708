//! Drivers made of bytes, against the socket device, while its host does what a host may do: sends,
//! reads, goes away, is replaced by another, resets all connections.
#![no_main]

use std::os::fd::OwnedFd;

use libfuzzer_sys::fuzz_target;
use pandastack_fuzz::{Script, sockets};
use pandastack_vmm::virtio::hostile::Hostile;
use pandastack_vmm::virtio::vsock::Vsock;
use pandastack_vmm::virtio::{DeviceState, Served};
use rustix::net::{RecvFlags, SendFlags, SocketType, recv, send, sockopt};

fuzz_target!(|bytes: &[u8]| {
    run(Script(bytes));
});

fn run(mut script: Script<'_>) -> Option<()> {
    let (ours, mut peer) = stream();
    let driver = Hostile::new(Vsock::new(Some(ours)));
    // Turn by turn: the host, then the driver.
    while let Some(what) = script.u8() {
        match what % 16 {
            0 => {
                let (ours, other) = stream();
                driver.slot().with(|vsock| vsock.replace_stream(ours));
                peer = other;
            }
            1 => driver.slot().with(Vsock::reset_transport),
            2 => peer = stream().1,
            3 => {
                let text = vec![what; usize::from(script.u16()? % 8192)];
                let _ = send(&peer, &text, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
            }
            4 => {
                let mut buffer = vec![0; usize::from(script.u16()? % 8192)];
                let _ = recv(&peer, &mut buffer, RecvFlags::DONTWAIT);
            }
            5 => {
                driver.slot().work();
            }
            _ => driver.play(script.some(254)?),
        }
    }
    let state = driver.check();
    assert!(matches!(state.device, DeviceState::Vsock { .. }));
    Some(())
}

/// A stream that holds little, so that it is full now and then.
fn stream() -> (OwnedFd, OwnedFd) {
    let (ours, peer) = sockets(SocketType::STREAM);
    sockopt::set_socket_send_buffer_size(&ours, 4096).expect("a socket");
    (ours, peer)
}
