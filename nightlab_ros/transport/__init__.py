# SPDX-License-Identifier: Apache-2.0
"""Images between processes: how the node subscribes, the middleware's profile, and its shared memory."""
