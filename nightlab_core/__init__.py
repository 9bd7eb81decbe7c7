# SPDX-License-Identifier: Apache-2.0
"""NightLab: dual-level semantic segmentation of night driving images."""
