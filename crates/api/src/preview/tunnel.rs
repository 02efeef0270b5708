//! A WebSocket: after the handshake, bytes both ways until either side has had enough.

use std::time::Duration;

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;
use tokio::time::timeout;

/// Time for both connections to be handed over after the handshake.
const HANDOVER: Duration = Duration::from_secs(10);

/// Carries bytes between two connections that are being upgraded. `held` is what has to live as long:
/// the connection to the guest, and the places that it takes.
pub(super) fn carry(client: OnUpgrade, guest: OnUpgrade, held: impl Send + 'static) {
    tokio::spawn(async move {
        let _held = held;
        let both = async { tokio::try_join!(client, guest) };
        let Ok(Ok((client, guest))) = timeout(HANDOVER, both).await else { return };
        let (mut client, mut guest) = (io(client), io(guest));
        // However it ends, both ends hear it. A guest that is silent for too long ends it as well.
        if let Err(error) = copy_bidirectional(&mut client, &mut guest).await {
            tracing::debug!(%error, "a tunnel broke");
        }
    });
}

fn io(upgraded: Upgraded) -> TokioIo<Upgraded> {
    TokioIo::new(upgraded)
}
