//! A thread that removes links. The kernel waits for its readers at each removal, tens of milliseconds
//! on a busy host; while one batch is under way the next collects.

use tokio::runtime::Builder;
use tokio::sync::mpsc;

use super::NetworkError;
use super::link::Links;
use super::maker::Turn;

/// What became of a batch.
pub(super) type Removed = Result<(), NetworkError>;
type Ends = (mpsc::Sender<Vec<String>>, mpsc::Receiver<Removed>);

/// Starts the thread in the calling thread's namespace. It takes one batch at a time and ends when
/// nobody can send another.
pub(super) fn spawn(dead: u32, turn: Turn) -> Result<Ends, NetworkError> {
    let (batch, mut batches) = mpsc::channel::<Vec<String>>(1);
    let (done, outcome) = mpsc::channel(1);
    let runtime = Builder::new_current_thread().enable_all().build().map_err(NetworkError::Thread)?;
    std::thread::Builder::new()
        .name("link-removal".into())
        .spawn(move || {
            runtime.block_on(async move {
                while let Some(names) = batches.recv().await {
                    let removed = match Links::open() {
                        Ok(links) => {
                            let _turn = turn.lock().await;
                            links.remove_all(&names, dead).await
                        }
                        Err(error) => Err(error),
                    };
                    if done.send(removed).await.is_err() {
                        return;
                    }
                }
            });
        })
        .map_err(NetworkError::Thread)?;
    Ok((batch, outcome))
}
