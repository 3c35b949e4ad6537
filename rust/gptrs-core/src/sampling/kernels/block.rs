//! What a kernel does to one block: arrays of a known length, whose elements are treated alike.

use super::BLOCK;

/// exp((logit - largest) * scale); `scale` is in units of log2(e).
#[inline(always)]
pub fn exp_of(logits: &[f32; BLOCK], largest: f32, scale: f32) -> [f32; BLOCK] {
    let mut weights = [0.0; BLOCK];
    for (weight, logit) in weights.iter_mut().zip(logits) {
        *weight = exp2((logit - largest) * scale);
    }
    weights
}

/// 2^x for x <= 0, to 2 units in the last place; below -126, where float32 ends, less and less, and 0
/// for -inf.
#[inline(always)]
pub fn exp2(x: f32) -> f32 {
    /// 1.5 * 2^23: a float32 that small numbers are rounded to integers by adding it to.
    const ROUND: f32 = 12_582_912.0;
    let x = larger(x, -127.0);
    // x = power + rest; |rest| <= 1/2
    let shifted = x + ROUND;
    let rest = x - (shifted - ROUND);
    // (2^rest - 1) / rest, minimax; what it leaves out is below 2e-9.
    let series = 1.535_335e-4 * rest + 1.339_887_5e-3;
    let series = series * rest + 9.618_438e-3;
    let series = series * rest + 5.550_332_5e-2;
    let series = series * rest + 2.402_264_8e-1;
    let series = series * rest + std::f32::consts::LN_2;
    let series = series * rest + 1.0;
    // The last bits of `shifted` are `power`, which is added to the exponent.
    f32::from_bits(series.to_bits().wrapping_add(shifted.to_bits() << 23))
}

#[inline(always)]
pub fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[inline(always)]
pub fn max(block: &[f32; BLOCK]) -> f32 {
    let mut maxima = [0.0; BLOCK / 2];
    let (low, high) = block.split_at(BLOCK / 2);
    for ((max, &a), &b) in maxima.iter_mut().zip(low).zip(high) {
        *max = larger(a, b);
    }
    fold(&mut maxima, larger)
}

#[inline(always)]
pub fn sum(block: &[f32; BLOCK]) -> f64 {
    let mut sums = [0.0; BLOCK / 2];
    let (low, high) = block.split_at(BLOCK / 2);
    for ((sum, &a), &b) in sums.iter_mut().zip(low).zip(high) {
        *sum = f64::from(a) + f64::from(b);
    }
    fold(&mut sums, |a, b| a + b)
}

/// Joins the second half with the first, again and again.
#[inline(always)]
pub fn fold<T: Copy>(values: &mut [T; BLOCK / 2], join: impl Fn(T, T) -> T) -> T {
    let mut half = BLOCK / 4;
    while half > 0 {
        let (low, high) = values.split_at_mut(half);
        for (a, &b) in low.iter_mut().zip(&*high) {
            *a = join(*a, b);
        }
        half /= 2;
    }
    values[0]
}

/// Hands out `N` values at a time; the last are filled up.
///
/// `each` is called in one place alone: so it becomes part of the kernel, in the kernel's
/// instructions, although a closure cannot be told to.
#[inline(always)]
pub fn for_blocks<const N: usize>(values: &[f32], fill: f32, mut each: impl FnMut(&[f32; N])) {
    for start in (0..values.len()).step_by(N) {
        let rest = &values[start..];
        let padded;
        let block = if let Some(block) = rest.first_chunk() {
            block
        } else {
            padded = pad(rest, fill);
            &padded
        };
        each(block);
    }
}

#[inline(always)]
pub fn pad<const N: usize>(values: &[f32], fill: f32) -> [f32; N] {
    let mut padded = [fill; N];
    padded[..values.len()].copy_from_slice(values);
    padded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_of_two_are_right_to_two_units_in_the_last_place() {
        for step in 0..200_000_u32 {
            let x = -f64::from(step) / 200_000.0 * 126.0;
            let x = x as f32;
            let expected = f64::from(x).exp2();
            let error = (f64::from(exp2(x)) - expected).abs() / expected;
            assert!(error < 2.0 * f64::from(f32::EPSILON), "{x}: {error}");
        }
        let bits = |x| exp2(x).to_bits();
        assert_eq!([0.0, -1.0, -126.0].map(bits), [1.0, 0.5, f32::MIN_POSITIVE].map(f32::to_bits));
        assert_eq!([f32::NEG_INFINITY, -127.0, f32::MIN].map(bits), [0; 3]);
        assert!((-1270..-1260).all(|tenths| (0.0..2e-38).contains(&exp2(tenths as f32 / 10.0))));
    }
}
