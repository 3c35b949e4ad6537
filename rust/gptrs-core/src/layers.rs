//! What training computes on a CPU beside PyTorch's own operators: causal attention with dropout, dropout,
//! GELU and linear layers, with their gradients, and parts of the loss.
//!
//! ```text
//!  attention   a head is one job: its rows are gathered, multiplied (product), made probabilities and
//!              dropped in cache, 32 queries at a time; the gradient does so again
//!  dropout     what is kept is a function of (seed, place): the gradient draws it again, nothing is stored
//!  loss        what lies between the products of the loss
//!  matmul      large products of float32, for processors where MKL is slow
//!  norm        the length of gradients
//!  team        the threads that PyTorch's operators run on, so that nobody waits for a processor
//! ```
//!
//! In bfloat16 products are of bfloat16 and summed in float32, all between them is float32. Results do not
//! depend on the number of threads.

mod attention;
mod dropout;
mod gelu;
mod loss;
mod matmul;
mod norm;
mod numbers;
mod product;
mod team;
#[cfg(test)]
mod tests;

pub use self::attention::{Attention, Gradients, Heads, Shape, backward, forward};
pub use self::dropout::{Dropout, dropout};
pub use self::gelu::{gelu, gelu_backward};
pub use self::loss::{exp_and_sum, softmax_and_losses, turn};
pub use self::matmul::{Matrix, Start, matmul, matmul_beats_mkl};
pub use self::norm::sum_of_squares;
pub use self::numbers::Number;
pub use crate::native::Kernels;

use self::team::on_threads;
use std::sync::{Mutex, PoisonError};

/// Numbers that a thread computes at once where each is computed by itself.
const CHUNK: usize = 1 << 14;

/// Calls `each` with every item once, on `threads` threads, and with what each of these keeps.
fn for_each<T: Send, W>(
    threads: usize,
    items: impl ExactSizeIterator<Item = T> + Send,
    new_worker: impl Fn() -> W + Sync,
    each: impl Fn(&mut W, T) + Sync,
) {
    let threads = threads.min(items.len());
    let queue = Mutex::new(items);
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    on_threads(threads, &|| {
        let mut worker = new_worker();
        while let Some(item) = next() {
            each(&mut worker, item);
        }
    });
}
