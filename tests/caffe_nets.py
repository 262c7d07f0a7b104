"""Small Caffe nets that several tests run."""

import numpy as np
import torch

import upscore.caffe as caffe

CHAIN = """
name: "chain"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 5 dim: 4 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 4 kernel_size: 3 pad: 1
    weight_filler { type: "xavier" } bias_filler { value: 0.1 } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "up" type: "Deconvolution" bottom: "conv" top: "up"
  convolution_param { num_output: 2 kernel_h: 4 kernel_w: 2 stride_h: 2 stride_w: 1 weight_filler { type: "xavier" } } }
"""
LOSS = """
layer { name: "target" type: "Input" top: "target" input_param { shape { dim: 2 dim: 2 dim: 12 dim: 5 } } }
layer { name: "loss" type: "EuclideanLoss" bottom: "up" bottom: "target" top: "loss" loss_weight: 3 }
"""


def rand(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def make(text, phase=caffe.TEST, **kwargs):
    torch.manual_seed(0)
    return caffe.Net(text, phase, **kwargs)
