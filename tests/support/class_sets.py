# SPDX-License-Identifier: Apache-2.0
"""The shipped class sets by name."""

from nightlab_core.classes import load_class_set

CITYSCAPES19, BDD18, CAMVID11 = map(load_class_set, ("cityscapes19", "bdd18", "camvid11"))
