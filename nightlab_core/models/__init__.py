# SPDX-License-Identifier: Apache-2.0
from nightlab_core.files import set_torch_cache

set_torch_cache()  # before torchvision is imported
