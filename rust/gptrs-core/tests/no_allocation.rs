//! A token of the native engine asks for no memory: what it needs was there before the first.
//!
//! A program of its own, as it counts what all threads allocate.

#![allow(unsafe_code, reason = "an allocator that counts")]
#![allow(clippy::unwrap_used, reason = "a test")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use gptrs_core::generate::{Extend, NextLogits};
use gptrs_core::native::{
    Block, Kernels, Linear, Matrix, NativeModel, Norm, Numbers, Options, Positions, Precision,
    Weights,
};

static COUNT: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: the system's allocator does it all.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.realloc(place, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const WIDTH: usize = 64;
const CONTEXT: usize = 64;

fn numbers(len: usize) -> Numbers {
    Numbers::of_f32((0..len).map(|i| (i * 7919 % 997) as f32 / 997.0 - 0.5).collect())
}

fn linear(rows: usize, columns: usize) -> Linear {
    Linear {
        weight: Matrix { rows, columns, numbers: numbers(rows * columns) },
        bias: Some(numbers(rows)),
    }
}

fn weights(positions: Positions) -> Weights {
    let norm = || Norm { scale: numbers(WIDTH), shift: numbers(WIDTH), eps: 1e-5 };
    let square = || linear(WIDTH, WIDTH);
    let block = || Block {
        norm1: norm(),
        query: square(),
        key: square(),
        value: square(),
        scale: 0.25,
        out: square(),
        norm2: norm(),
        up: linear(4 * WIDTH, WIDTH),
        down: linear(WIDTH, 4 * WIDTH),
    };
    Weights {
        tokens: linear(97, WIDTH).weight,
        positions,
        blocks: vec![block(), block()],
        num_heads: 4,
        norm: norm(),
        head: linear(97, WIDTH),
    }
}

/// How often memory is asked for in the last tokens of a slot.
fn allocations(positions: Positions, options: Options) -> usize {
    let mut model = NativeModel::new(weights(positions), options).unwrap();
    let prompt: Vec<u32> = (0..20).collect();
    model.extend(&[Extend { slot: 0, tokens: &prompt, wanted: 1 }]).unwrap();
    let step = |model: &mut NativeModel, token: u32| {
        model.extend(&[Extend { slot: 0, tokens: &[token], wanted: 1 }]).unwrap();
    };
    (0..4).for_each(|token| step(&mut model, token));
    let before = COUNT.load(Ordering::Relaxed);
    (0..40).for_each(|token| step(&mut model, token));
    COUNT.load(Ordering::Relaxed) - before
}

#[test]
fn a_token_asks_for_no_memory() {
    for kernels in Kernels::available() {
        for precision in [Precision::AsStored, Precision::Int8] {
            for threads in [1, 2] {
                let options =
                    Options { slots: 2, context_length: CONTEXT, threads, precision, kernels };
                let table = linear(CONTEXT, WIDTH).weight;
                for positions in [Positions::Learned(table), Positions::Rope, Positions::Sinusoidal]
                {
                    assert_eq!(allocations(positions, options), 0, "{options:?}");
                }
            }
        }
    }
}
