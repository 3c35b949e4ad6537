//! What holds for random models of any shape, in whatever way their tokens come.
//!
//! That the numbers are PyTorch's is tested where PyTorch is.

use half::bf16;
use proptest::prelude::*;

use super::*;

/// A model's shape.
#[derive(Debug, Clone)]
struct Shape {
    vocab_size: usize,
    heads: usize,
    head_dim: usize,
    layers: usize,
    hidden: usize,
    positions: u8,
    has_bias: bool,
    is_bf16: bool,
    seed: u64,
}

const CONTEXT: usize = 40;

fn shapes() -> impl Strategy<Value = Shape> {
    let sizes = (2..90_usize, 1..4_usize, 1..20_usize, 0..3_usize, 1..80_usize);
    let kinds = (any::<bool>(), any::<bool>(), any::<bool>());
    (sizes, 0..5_u8, kinds, any::<u64>()).prop_map(
        |((vocab_size, heads, half, layers, hidden), positions, kinds, seed)| {
            let (has_bias, is_bf16, is_even) = kinds;
            let head_dim = if positions == 3 { half * 2 } else { half };
            // Half of them are as wide as tiles are, or as groups of bytes.
            let unit = if seed % 2 == 0 { 32 } else { 64 };
            let whole = |size: usize| if is_even { size.next_multiple_of(unit) } else { size };
            let (head_dim, hidden) = (whole(head_dim), whole(hidden));
            Shape {
                vocab_size,
                heads,
                head_dim,
                layers,
                hidden,
                positions,
                has_bias,
                is_bf16,
                seed,
            }
        },
    )
}

/// Random numbers in -1..1, from a small generator.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    }

    fn numbers(&mut self, len: usize, size: f32, is_bf16: bool) -> Numbers {
        let values: Vec<f32> = (0..len).map(|_| self.next() * size).collect();
        if is_bf16 {
            Numbers::of_bf16(values.into_iter().map(bf16::from_f32).collect())
        } else {
            Numbers::of_f32(values)
        }
    }
}

fn weights(shape: &Shape) -> Weights {
    let mut random = Random(shape.seed);
    let Shape { vocab_size, heads, head_dim, layers, hidden, is_bf16, .. } = *shape;
    let width = heads * head_dim;
    let mut matrix = |rows: usize, columns: usize| {
        let size = 2.0 / (columns as f32).sqrt();
        Matrix { rows, columns, numbers: random.numbers(rows * columns, size, is_bf16) }
    };
    let tokens = matrix(vocab_size, width);
    let positions = match shape.positions {
        0 => Positions::None,
        1 => Positions::Learned(matrix(CONTEXT, width)),
        2 => Positions::Sinusoidal,
        3 => Positions::Rope,
        _ => Positions::Alibi((0..heads).map(|head| 0.5 / (head + 1) as f32).collect()),
    };
    let mut matrices: Vec<_> = (0..layers)
        .map(|_| {
            let square = [0; 4].map(|_| matrix(width, width));
            (square, matrix(hidden, width), matrix(width, hidden))
        })
        .collect();
    let head = matrix(vocab_size, width);
    let mut bias = |rows: usize| shape.has_bias.then(|| random.numbers(rows, 0.5, is_bf16));
    let mut linear = |weight: Matrix| Linear { bias: bias(weight.rows), weight };
    let linears: Vec<_> = matrices
        .drain(..)
        .map(|(square, up, down)| (square.map(&mut linear), linear(up), linear(down)))
        .collect();
    let head = linear(head);
    let mut norm = || Norm {
        scale: random.numbers(width, 1.5, is_bf16),
        shift: random.numbers(width, 0.5, is_bf16),
        eps: 1e-5,
    };
    let blocks = linears
        .into_iter()
        .map(|([query, key, value, out], up, down)| Block {
            norm1: norm(),
            query,
            key,
            value,
            scale: 1.0 / (head_dim as f32).sqrt(),
            out,
            norm2: norm(),
            up,
            down,
        })
        .collect();
    Weights { tokens, positions, blocks, num_heads: heads, norm: norm(), head }
}

fn options(kernels: Kernels, threads: usize, precision: Precision) -> Options {
    Options { slots: 4, context_length: CONTEXT, threads, precision, kernels }
}

/// The logits of every token, from calls that have as many tokens as `cuts` says.
fn logits_of(
    model: &mut NativeModel,
    slot: usize,
    tokens: &[u32],
    cuts: &[usize],
) -> Vec<Vec<u32>> {
    let mut rows = Vec::new();
    let mut rest = tokens;
    for cut in cuts.iter().chain([&usize::MAX]) {
        let (now, later) = rest.split_at(rest.len().min(*cut));
        if !now.is_empty() {
            model.extend(&[Extend { slot, tokens: now, wanted: now.len() }]).unwrap();
            rows.extend(bits(model, now.len()));
        }
        rest = later;
    }
    rows
}

fn bits(model: &NativeModel, count: usize) -> Vec<Vec<u32>> {
    let Logits::F32(all, width) = model.logits() else { panic!("float32") };
    assert_eq!(all.len(), count * width);
    all.chunks(width).map(|row| row.iter().map(|x| x.to_bits()).collect()).collect()
}

fn floats(rows: &[Vec<u32>]) -> Vec<f32> {
    rows.iter().flatten().map(|&bits| f32::from_bits(bits)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn logits_are_the_same_bits_however_tokens_come(
        shape in shapes(),
        is_int8 in any::<bool>(),
        tokens in prop::collection::vec(any::<u32>(), 1..CONTEXT),
        cuts in prop::collection::vec(1..9_usize, 0..12),
        threads in 2..4_usize,
        others in prop::collection::vec(1..30_usize, 3),
    ) {
        let tokens: Vec<u32> = tokens.iter().map(|t| t % shape.vocab_size as u32).collect();
        let precision = if is_int8 { Precision::Int8 } else { Precision::AsStored };
        for kernels in Kernels::available() {
            let model = |threads| NativeModel::new(weights(&shape), options(kernels, threads, precision));
            let whole = logits_of(&mut model(1).unwrap(), 0, &tokens, &[]);
            prop_assert!(floats(&whole).iter().all(|x| x.is_finite()));
            let mut several = model(threads).unwrap();
            prop_assert_eq!(&logits_of(&mut several, 2, &tokens, &cuts), &whole);
            // Beside others, of which the first three slots have some tokens already.
            for slot in 0..4 {
                several.truncate(slot, 0).unwrap();
            }
            let prompts: Vec<Vec<u32>> = others.iter().map(|&len| vec![1; len]).collect();
            let mut work: Vec<_> = prompts
                .iter()
                .enumerate()
                .map(|(slot, tokens)| Extend { slot, tokens, wanted: 0 })
                .collect();
            work.push(Extend { slot: 3, tokens: &tokens, wanted: tokens.len() });
            several.extend(&work).unwrap();
            prop_assert_eq!(&bits(&several, tokens.len()), &whole);
            // A prefix of another slot is as good as one's own.
            several.copy(3, 1, tokens.len() - 1).unwrap();
            let last = &tokens[tokens.len() - 1..];
            several.extend(&[Extend { slot: 1, tokens: last, wanted: 1 }]).unwrap();
            prop_assert_eq!(&bits(&several, 1)[0], &whole[tokens.len() - 1]);
        }
    }

    #[test]
    fn all_kernels_that_round_alike_give_the_same_bits(
        shape in shapes(),
        is_int8 in any::<bool>(),
        tokens in prop::collection::vec(any::<u32>(), 1..CONTEXT),
    ) {
        let tokens: Vec<u32> = tokens.iter().map(|t| t % shape.vocab_size as u32).collect();
        let precision = if is_int8 { Precision::Int8 } else { Precision::AsStored };
        // Tiles and pairs round the inputs of bfloat16 weights; of bytes all make the very same sums.
        let rounds_alike = |kernels: &Kernels| match kernels {
            Kernels::Portable => false,
            Kernels::Amx | Kernels::Avx512Bf16 => is_int8 || !shape.is_bf16,
            Kernels::Avx512 | Kernels::Avx2 => true,
        };
        let alike = Kernels::available().into_iter().filter(rounds_alike);
        let logits = |kernels| {
            let mut model = NativeModel::new(weights(&shape), options(kernels, 1, precision)).unwrap();
            logits_of(&mut model, 0, &tokens, &[])
        };
        let all: Vec<_> = alike.map(logits).collect();
        prop_assert!(all.windows(2).all(|pair| pair[0] == pair[1]));
    }

    #[test]
    fn every_processors_version_agrees_with_the_portable_one(
        shape in shapes(),
        is_int8 in any::<bool>(),
        tokens in prop::collection::vec(any::<u32>(), 1..CONTEXT),
    ) {
        // A norm of few numbers may make much of a small difference between them.
        prop_assume!(shape.heads * shape.head_dim >= 16);
        let tokens: Vec<u32> = tokens.iter().map(|t| t % shape.vocab_size as u32).collect();
        let precision = if is_int8 { Precision::Int8 } else { Precision::AsStored };
        let logits = |kernels| {
            let mut model = NativeModel::new(weights(&shape), options(kernels, 1, precision)).unwrap();
            floats(&logits_of(&mut model, 0, &tokens, &[]))
        };
        let expected = logits(Kernels::Portable);
        let size = expected.iter().fold(1.0_f32, |size, x| size.max(x.abs()));
        // A number that lies between two bytes, or two bfloat16 in the cache, may go either way.
        let tolerance = match (is_int8, shape.is_bf16) {
            (true, _) => 0.05,
            (false, true) => 0.02,
            (false, false) => 1e-4,
        };
        for kernels in Kernels::available() {
            let found = logits(kernels);
            let squares = found.iter().zip(&expected).map(|(found, expected)| (found - expected).powi(2));
            let error = (squares.sum::<f32>() / expected.len() as f32).sqrt();
            prop_assert!(error <= tolerance * size, "{}: {error} of {size}", kernels.name());
        }
    }
}
