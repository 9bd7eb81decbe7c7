# SPDX-License-Identifier: Apache-2.0
"""Read and write bags (rosbag2 in MCAP or SQLite, ROS 1's .bag) without ROS.

`reader.Bag` gives camera frames with their label maps. Below it `storage` gives single messages of any storage format,
with one module for each format. `write.BagWriter` writes new bags.
"""
