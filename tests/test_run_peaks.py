"""MFU: what a run's speed is measured against."""

import pytest
import torch

from gptrs.training.reports.peaks import gpu_peak, measured_peak, peak, utilisation


@pytest.mark.parametrize(
    ("name", "dtype", "teraflops"),
    [
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312),
        ("NVIDIA A100 80GB PCIe", "tf32", 156),
        ("NVIDIA A100-SXM4-40GB", "float32", 19.5),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.5),
        ("NVIDIA H100 PCIe", "bfloat16", 756.5),
        ("NVIDIA H100 NVL", "bfloat16", 835.5),
        ("NVIDIA H200", "bfloat16", 989.5),
        ("NVIDIA L4", "bfloat16", 121),
        ("NVIDIA L40S", "bfloat16", 362.05),
        ("NVIDIA L40", "bfloat16", 181.05),
        ("NVIDIA A10", "bfloat16", 125),
        ("NVIDIA GeForce RTX 4090", "bfloat16", 165.2),
        ("Tesla T4", "float16", 65),
        ("Tesla V100-SXM2-16GB", "float16", 125),
    ],
)
def test_a_gpu_has_its_makers_figure_and_the_source_is_named(name, dtype, teraflops):
    found = gpu_peak(name, dtype)
    assert found.flops_per_s == pytest.approx(teraflops * 1e12)
    assert "NVIDIA" in found.source


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("Tesla T4", "bfloat16"),  # It has none.
        ("NVIDIA A10G", "bfloat16"),
        ("NVIDIA GH200 480GB", "bfloat16"),
        ("NVIDIA H20", "bfloat16"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bfloat16"),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bfloat16"),
        ("AMD Instinct MI300X", "bfloat16"),
    ],
)
def test_what_is_not_in_the_table_is_unknown_and_nothing_is_guessed(name, dtype):
    found = gpu_peak(name, dtype)
    assert found.flops_per_s is None
    assert name in found.source


def test_a_cpus_peak_is_measured_once_and_leaves_the_generator_alone():
    before = torch.get_rng_state()
    found = peak(torch.device("cpu"), "float32")
    assert found.flops_per_s > 1e8
    assert "float32 matmul measured here, with 1 thread" in found.source
    assert found is measured_peak("float32", torch.get_num_threads())
    assert torch.equal(torch.get_rng_state(), before)


def test_palms_mfu_comes_out():
    """Chowdhery et al. 2022, section 4.1 and appendix B: 46.2 % for 540B on 6,144 TPU v4."""
    parameters, layers, heads, head_dim, length = 540.35e9, 118, 48, 256, 2048
    flops = 6 * parameters + 12 * layers * heads * head_dim * length
    assert utilisation(238_300, flops, 275e12, 6144) == pytest.approx(0.462, abs=5e-4)
    assert utilisation(238_300, flops, None) is None
