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

/// Rows, products to a sum, columns: beyond every block, and less than any.
const SHAPES: [[usize; 3]; 8] = [
    [1, 1, 1],
    [3, 0, 2],
    [7, 31, 17],
    [50, 513, 49],
    [200, 17, 96],
    [13, 1100, 47],
    [9, 5, 3100],
    [0, 4, 5],
];

#[test]
fn a_product_is_that_of_float64_whichever_way_the_matrices_lie() {
    for ([rows, depth, columns], kernels) in SHAPES
        .into_iter()
        .flat_map(|shape| Kernels::available().into_iter().map(move |kernels| (shape, kernels)))
    {
        let (left, right) = (numbers(rows * depth, |x| x), numbers(depth * columns, |x| -x));
        let (before, row) = (numbers(rows * columns, |x| 3.0 * x), numbers(columns, |x| 2.0 * x));
        for [left_strides, right_strides] in [
            [[depth, 1], [columns, 1]],
            [[depth, 1], [1, depth]],
            [[1, rows], [columns, 1]],
            [[1, rows], [1, depth]],
        ] {
            for (index, start) in
                [Start::Zero, Start::Output, Start::Row(&row)].into_iter().enumerate()
            {
                let mut out = before.clone();
                let mut alone = before.clone();
                let left_matrix = Matrix::new(&left, [rows, depth], left_strides);
                let right_matrix = Matrix::new(&right, [depth, columns], right_strides);
                matmul(kernels, 3, left_matrix, right_matrix, start, &mut out);
                matmul(kernels, 1, left_matrix, right_matrix, start, &mut alone);
                assert_eq!(out, alone, "threads, {kernels:?}");
                for (place, found) in out.iter().enumerate() {
                    let (m, n) = (place / columns, place % columns);
                    let from = [0.0, before[place], row[n]][index];
                    let (mut wanted, mut added_up) = (f64::from(from), f64::from(from).abs());
                    for k in 0..depth {
                        let a = left[m * left_strides[0] + k * left_strides[1]];
                        let b = right[k * right_strides[0] + n * right_strides[1]];
                        wanted += f64::from(a) * f64::from(b);
                        added_up += (f64::from(a) * f64::from(b)).abs();
                    }
                    let error = (f64::from(*found) - wanted).abs();
                    assert!(error <= 4e-6 * added_up, "{kernels:?} {place}: {found}, not {wanted}");
                }
            }
        }
    }
}
