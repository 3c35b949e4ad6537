use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

use half::bf16;

use super::*;

#[test]
fn every_item_comes_once_on_any_number_of_threads() {
    for threads in 0..5 {
        for count in [0, 1, 2, 3, 100] {
            let calls: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
            let workers = AtomicUsize::new(0);
            let new_worker = || workers.fetch_add(1, Ordering::Relaxed);
            for_each(threads, 0..count, new_worker, |_, item: usize| {
                calls[item].fetch_add(1, Ordering::Relaxed);
            });
            assert!(calls.iter().all(|calls| calls.load(Ordering::Relaxed) == 1));
            assert!(workers.into_inner() <= threads.max(1));
        }
    }
}

#[test]
fn a_panic_on_any_thread_arrives() {
    for threads in 1..4 {
        let work = || for_each(threads, 0..9, || (), |(), item| assert_ne!(item, 5, "the fifth"));
        assert!(catch_unwind(AssertUnwindSafe(work)).is_err());
    }
}

/// Numbers that repeat late.
fn numbers<N: Number>(count: usize, convert: impl Fn(f32) -> N) -> Vec<N> {
    (0..count).map(|i| convert((i * 7919 % 1009) as f32 / 504.5 - 1.0)).collect()
}

/// Output and gradients of attention, as float32.
fn attend<N: Number>(
    convert: impl Fn(f32) -> N + Copy,
    kernels: Kernels,
    threads: usize,
) -> Vec<Vec<f32>> {
    let shape = Shape { batch: 2, heads: 3, tokens: 37, head_dim: 24 };
    let dropout = Dropout::new(0.25, 99);
    let attention = Attention { shape, scale: 0.4, dropout, kernels, threads };
    let count = 2 * 3 * 37 * 24;
    let all = numbers(4 * count, convert);
    let strides = [37 * 3 * 24, 24, 3 * 24];
    let part = |index: usize| Heads { numbers: &all[index * count..][..count], strides };
    let mut outs = vec![vec![convert(0.0); count]; 4];
    let mut log_sums = vec![0.0; 2 * 3 * 37];
    forward(&attention, [part(0), part(1), part(2)], &mut outs[3], &mut log_sums);
    let [query, key, value, out] = &mut outs[..] else { unreachable!("there are four") };
    let given = Heads { numbers: &*out, strides };
    let inputs = [part(0), part(1), part(2), given, part(3)];
    backward(&attention, inputs, &log_sums, Gradients { query, key, value });
    let widened = |numbers: &Vec<N>| {
        let lanes = |chunk: &[N]| {
            let mut wide = vec![0.0; chunk.len()];
            wide.iter_mut().zip(chunk).for_each(|(wide, number)| *wide = to_f32(*number));
            wide
        };
        lanes(numbers)
    };
    outs.iter().map(widened).collect()
}

fn to_f32<N: Number>(number: N) -> f32 {
    let mut word = [0; 4];
    let bytes = bytemuck::bytes_of(&number);
    word[4 - bytes.len()..].copy_from_slice(bytes);
    f32::from_le_bytes(word)
}

#[test]
fn attention_is_the_same_to_the_bit_on_any_number_of_threads_and_to_rounding_on_any_kernels() {
    for kernels in Kernels::available() {
        assert_eq!(attend(|x| x, kernels, 1), attend(|x| x, kernels, 3));
        assert_eq!(attend(bf16::from_f32, kernels, 1), attend(bf16::from_f32, kernels, 3));
        let (exact, found) = (attend(|x| x, Kernels::Portable, 1), attend(|x| x, kernels, 2));
        for (exact, found) in exact.iter().flatten().zip(found.iter().flatten()) {
            assert!((exact - found).abs() < 1e-5, "{kernels:?}: {found} for {exact}");
        }
    }
}
