# SPDX-License-Identifier: Apache-2.0
"""What the node says about itself: counts, percentiles and faults, for /diagnostics and the log."""
