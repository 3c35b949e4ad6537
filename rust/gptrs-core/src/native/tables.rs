//! Angles of positions, computed once and for as many as are needed.
//!
//! Rounded as PyTorch's float32 operators round, step by step: a model sees the angles that it was
//! trained with.

/// Ratio of the longest wavelength to the shortest, about.
const BASE: f64 = 10_000.0;

/// Sines and cosines by position.
#[derive(Debug, Default)]
pub struct Angles {
    /// 1 / 10000^(2 i / dim).
    frequencies: Vec<f32>,
    /// `[positions][dim / 2]`.
    pub sin: Vec<f32>,
    /// `[positions][dim / 2]`.
    pub cos: Vec<f32>,
}

impl Angles {
    /// For vectors of `dim` numbers, a sine and a cosine for each two; with room for `context` positions.
    pub fn new(dim: usize, context: usize) -> Self {
        let frequency = |i: usize| {
            let exponent = (2 * i) as f32 / dim as f32;
            1.0 / BASE.powf(f64::from(exponent)) as f32
        };
        let frequencies: Vec<_> = (0..dim.div_ceil(2)).map(frequency).collect();
        let room = || Vec::with_capacity(context * frequencies.len());
        Self { sin: room(), cos: room(), frequencies }
    }

    /// Makes sure that positions below `end` are there.
    pub fn reach(&mut self, end: usize) {
        let width = self.frequencies.len().max(1);
        for position in self.sin.len() / width..end {
            for &frequency in &self.frequencies {
                let angle = f64::from(position as f32 * frequency);
                self.sin.push(angle.sin() as f32);
                self.cos.push(angle.cos() as f32);
            }
        }
    }

    /// Adds sines at even places and cosines at odd ones.
    pub fn add_to(&self, x: &mut [f32], position: usize) {
        let start = position * self.frequencies.len();
        for (i, x) in x.iter_mut().enumerate() {
            *x += if i % 2 == 0 { self.sin[start + i / 2] } else { self.cos[start + i / 2] };
        }
    }
}
