#!/usr/bin/env python3
"""Makes the numbers that tests/recipes.rs compares with, from torch.

    pip install torch==2.15.0
    python scripts/make_recipe_fixtures.py

Writes tests/fixtures/recipes.json: losses over random logits with their derivatives by each logit, and steps of AdamW
with two learning rates. AsymmetricLoss is the one of the paper's repository (Alibaba-MIIL/ASL), differentiated in full and
averaged over terms; DistributionBalanced that of wutong16/DistributionBalancedLoss (ResampleLoss with reweighting by the
rebalance function, logit regularization and focal), with the settings for MS-COCO.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F

OUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "recipes.json"


def asymmetric(x, y, gamma_neg=4.0, gamma_pos=1.0, clip=0.05, eps=1e-8):
    p = torch.sigmoid(x)
    xs_pos, xs_neg = p, 1 - p
    if clip > 0:
        xs_neg = (xs_neg + clip).clamp(max=1)
    loss = y * torch.log(xs_pos.clamp(min=eps)) + (1 - y) * torch.log(xs_neg.clamp(min=eps))
    pt = xs_pos * y + xs_neg * (1 - y)
    gamma = gamma_pos * y + gamma_neg * (1 - y)
    return -(loss * torch.pow(1 - pt, gamma)).mean()


def distribution_balanced(x, y, class_freq, train_num, gamma=2.0):
    map_alpha, map_beta, map_gamma, neg_scale, init_bias = 0.1, 10.0, 0.2, 2.0, 0.05
    freq_inv = 1 / class_freq
    bias = -torch.log(train_num / class_freq - 1) * init_bias / neg_scale
    repeat_rate = (y * freq_inv).sum(1, keepdim=True)
    weight = torch.sigmoid(map_beta * (freq_inv.unsqueeze(0) / repeat_rate - map_gamma)) + map_alpha
    x = x + bias
    x = x * (1 - y) * neg_scale + x * y
    weight = weight / neg_scale * (1 - y) + weight * y
    logpt = F.binary_cross_entropy_with_logits(x, y, reduction="none")
    pt = torch.exp(-logpt)
    return ((1 - pt) ** gamma * weight * logpt).mean()


def case(name, loss, x, y, **more):
    x = x.clone().requires_grad_()
    value = loss(x, y)
    value.backward()
    return dict(
        name=name, logits=x.tolist(), labels=y.tolist(), loss=value.item(), gradient=x.grad.tolist(), **more
    )


def smoothed(y, epsilon, count):
    return y * (1 - epsilon) + epsilon / count


def steps():
    """Two tensors, two groups: the second has a rate of its own, and both decay linearly."""
    torch.manual_seed(5)
    values = [torch.randn(7, dtype=torch.float32) for _ in range(2)]
    params = [torch.nn.Parameter(value.clone()) for value in values]
    rates = [0.01, 0.07]
    optimizer = torch.optim.AdamW(
        [dict(params=[param], lr=rate) for param, rate in zip(params, rates)], weight_decay=0.1, eps=1e-8
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (5 - step) / 5)
    gradients = []
    for _ in range(5):
        drawn = [torch.randn(7) for _ in params]
        for param, gradient in zip(params, drawn):
            param.grad = gradient.clone()
        optimizer.step()
        schedule.step()
        gradients.append([gradient.tolist() for gradient in drawn])
    return dict(
        start=[value.tolist() for value in values], gradients=gradients, rates=rates, weight_decay=0.1,
        end=[param.detach().tolist() for param in params],
    )


def main():
    torch.manual_seed(3)
    x = 3 * torch.randn(6, 4)
    y = (torch.rand(6, 4) < 0.35).float()
    y[2] = 0  # a row without any label
    frequencies = torch.tensor([120.0, 9.0, 40.0, 2.0])
    one_hot = F.one_hot(torch.tensor([1, 0, 3, 3, 2, 1]), 4).float()
    cases = [
        case("asymmetric", asymmetric, x, y, positive=1.0, negative=4.0, margin=0.05),
        case(
            "asymmetric", lambda a, b: asymmetric(a, b, gamma_neg=2.5, gamma_pos=0.0, clip=0.2), x, y,
            positive=0.0, negative=2.5, margin=0.2,
        ),
        case(
            "asymmetric", lambda a, b: asymmetric(a, b, gamma_neg=3.0, gamma_pos=0.5, clip=0.0), x, y,
            positive=0.5, negative=3.0, margin=0.0,
        ),
        case(
            "distribution_balanced", lambda a, b: distribution_balanced(a, b, frequencies, 200.0), x, y,
            counts=[120, 9, 40, 2], rows=200, gamma=2.0,
        ),
        case(
            "smoothed_bce", lambda a, b: F.binary_cross_entropy_with_logits(a, smoothed(b, 0.2, 2)), x, y, smoothing=0.2
        ),
        case(
            "smoothed_classes",
            lambda a, b: F.cross_entropy(a, b.argmax(1), label_smoothing=0.15), x, one_hot, smoothing=0.15,
        ),
    ]
    OUT.write_text(json.dumps(dict(losses=cases, steps=steps()), indent=1) + "\n")


if __name__ == "__main__":
    main()
