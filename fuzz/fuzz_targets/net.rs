//! Drivers made of bytes, against a network card whose peer sends whatever it likes: what comes
//! out is frames of a possible length.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pandastack_fuzz::{Script, sockets};
use pandastack_vmm::virtio::Net;
use pandastack_vmm::virtio::hostile::Hostile;
use pandastack_vmm::virtio::net::MAX_FRAME;
use rustix::net::{RecvFlags, SendFlags, SocketType, recv, send};

fuzz_target!(|bytes: &[u8]| {
    run(Script(bytes));
});

fn run(mut script: Script<'_>) -> Option<()> {
    let kind = if script.u8()? & 1 == 0 { SocketType::DGRAM } else { SocketType::SEQPACKET };
    let (ours, mut peer) = sockets(kind);
    let driver = Hostile::new(Net::new(Some(ours), [2, 0, 0, 0, 0, 1]));
    // Turn by turn: the peer, then the driver.
    while let Some(what) = script.u8() {
        match what % 8 {
            0 => {
                let (ours, other) = sockets(kind);
                driver.slot().with(|net| net.set_socket(Some(ours)));
                peer = other;
            }
            1 => driver.slot().with(|net| net.set_socket(None)),
            2 => {
                let len = usize::from(script.u16()? % 4096);
                let _ = send(&peer, &vec![what; len], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
            }
            3 => take_frames(&peer),
            _ => driver.play(script.some(254)?),
        }
    }
    take_frames(&peer);
    driver.check();
    Some(())
}

fn take_frames(peer: &std::os::fd::OwnedFd) {
    let mut buffer = [0; 2 * MAX_FRAME];
    while let Ok((_, len @ 1..)) = recv(peer, &mut buffer, RecvFlags::DONTWAIT | RecvFlags::TRUNC) {
        assert!((14..=MAX_FRAME).contains(&len), "a frame of {len} bytes");
    }
}
