//! Work that is finished although nobody waits for it any more.

use crate::EngineError;

/// Runs `work` whether or not the caller keeps waiting.
///
/// Whoever asks may stop waiting at any moment: a client that goes away, a deadline. A machine
/// must not be left standing still by that, nor its monitor in the middle of an exchange. So what
/// is done to a machine as a whole happens in a task of its own; what it made for nobody is
/// dropped, which ends it.
pub(crate) async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, EngineError>> + Send + 'static,
) -> Result<T, EngineError> {
    let done = tokio::spawn(work).await;
    done.unwrap_or_else(|gone| Err(EngineError::Ended(gone.to_string())))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn what_was_begun_ends_although_nobody_waits() {
        let (go, wait) = oneshot::channel::<()>();
        let (done, seen) = oneshot::channel::<()>();
        let work = to_its_end(async move {
            let _ = wait.await;
            let _ = done.send(());
            Ok(())
        });
        let impatient = tokio::time::timeout(Duration::from_millis(1), work).await;
        assert!(impatient.is_err());
        go.send(()).unwrap();
        seen.await.unwrap();
    }
}
