# SPDX-License-Identifier: Apache-2.0
"""The node's topics: publishers, subscriptions and docs/topics.md derive from these tables. Imports no ROS."""

from __future__ import annotations

from dataclasses import dataclass

from nightlab_core.runtime.pipeline import STAGES as PIPELINE_STAGES


@dataclass(frozen=True)
class NodeTopic:
    """A topic of the node. Queues have a depth of 1."""

    name: str  #: relative to the namespace; ~ is the node's own name
    message_type: str  #: for example "sensor_msgs/msg/Image"
    description: str
    reliability: str = "reliable"  #: "reliable", "best effort", or "as published": that of the publishers
    latched: bool = False  #: True if a later subscription receives the last message ("transient local")


IMAGE = NodeTopic(
    "image",
    "sensor_msgs/msg/Image",
    "Camera images, if `transport` is raw. Reliable while every publisher is reliable, otherwise best effort.",
    "as published",
)
COMPRESSED_IMAGE = NodeTopic(
    "image/compressed",
    "sensor_msgs/msg/CompressedImage",
    "Camera images as JPEG or PNG, if `transport` is compressed. Reliable like `image`.",
    "as published",
)
CAMERA_INFO = NodeTopic(
    "camera_info", "sensor_msgs/msg/CameraInfo", "Calibration of the camera, if there is one.", "best effort"
)
CLOCK = NodeTopic("/clock", "rosgraph_msgs/msg/Clock", "Simulated time, if `use_sim_time` is set.", "best effort")
SUBSCRIPTIONS = (IMAGE, COMPRESSED_IMAGE, CAMERA_INFO, CLOCK)

MASK = NodeTopic(
    "~/mask",
    "sensor_msgs/msg/Image",
    "Class id of each pixel, mono8; 255 is unlabelled. It has the image's stamp, and the size that `output_size` says.",
)
MASK_PNG = NodeTopic(
    "~/mask/compressed",
    "sensor_msgs/msg/CompressedImage",
    "`~/mask` as PNG, without loss, for recording.",
)
CONFIDENCE = NodeTopic("~/confidence", "sensor_msgs/msg/Image", "Probability of each label, mono8, 0 to 255.")
REGIONS = NodeTopic(
    "~/regions",
    "vision_msgs/msg/Detection2DArray",
    "Hard regions in pixels of the image, with scores, 0 to 1. Their class id is `refined`, or `hard` if not refined.",
)
LABEL_INFO = NodeTopic(
    "~/label_info",
    "vision_msgs/msg/LabelInfo",
    "Names of the class ids, and `confidence_threshold`. Published at activation and when the threshold changes.",
    latched=True,
)
MASK_INFO = NodeTopic(
    "~/camera_info",
    "sensor_msgs/msg/CameraInfo",
    "The newest calibration from `camera_info` with the stamp, frame_id and size of the mask, if it is the image's.",
)
OVERLAY = NodeTopic(
    "~/overlay",
    "sensor_msgs/msg/Image",
    "The image with the mask in class colours, bgr8. Drawn while there is a subscription and `overlay` is true.",
)
OVERLAY_JPEG = NodeTopic("~/overlay/compressed", "sensor_msgs/msg/CompressedImage", "`~/overlay` as JPEG.")
AUTOWARE_MASK = NodeTopic(
    "~/autoware/mask",
    "sensor_msgs/msg/Image",
    "`~/mask` in the classes and in the run-length form of Autoware, if `autoware_classes` is set: 5 bytes a run, an "
    "id (uint8) and a length (int32, little endian), row by row. The encoding is named `rle8`: it is no mono8.",
)
IMAGE_LEVEL_MASK = NodeTopic(
    "~/debug/image_level_mask",
    "sensor_msgs/msg/Image",
    "Mask of the image level alone, mono8. Published while there is a subscription.",
)
REGION_OUTCOMES = NodeTopic(
    "~/debug/regions",
    "std_msgs/msg/String",
    "What happened to each hard region of an image, as JSON: `stamp_ns`, and `regions` with `box_xyxy`, `score` and "
    "`outcome`: `read`, `left_out` or `late` because of `deadline_ms`, `not_chosen`, `unchanged` or `failed`. "
    "Published while there is a subscription.",
)
DIAGNOSTICS = NodeTopic(
    "/diagnostics", "diagnostic_msgs/msg/DiagnosticArray", "State, counts, rate and times, once a second."
)
#: Time of each stage of a frame, in milliseconds of a clock that never jumps.
STAGE_DESCRIPTIONS = {
    "wait": "from the arrival of the image until the worker takes it",
    "convert": "convert the message to an array",
    "resize": "resize the frame to the input size of the networks",
    "image": "run the image network and resize its labels to the frame",
    "hardness": "run the hardness network and suppress overlapping boxes",
    "crop": "crop and enlarge the regions",
    "region": "run the region network",
    "merge": "merge the labels of both levels",
    "total": "the whole pipeline; less than the sum of its stages, because both levels run at the same time",
    "publish": "publish everything except the overlay and the times, on its own thread",
    "overhead": "latency without the pipeline's total: what the node adds",
    "latency": "from the arrival of the image until everything except the overlay is published",
    "overlay": "draw and publish the overlay, on its own thread",
}
#: Names in the order of a frame: the pipeline's stages and the node's own.
STAGES = ("wait", "convert", *PIPELINE_STAGES, "publish", "overhead", "latency", "overlay")
STAGE_TOPICS = {
    stage: NodeTopic(f"~/debug/{stage}_ms", "std_msgs/msg/Float64", f"Milliseconds: {STAGE_DESCRIPTIONS[stage]}.")
    for stage in STAGES
}
PUBLICATIONS = (
    *(MASK, MASK_PNG, CONFIDENCE, MASK_INFO, REGIONS, LABEL_INFO, OVERLAY, OVERLAY_JPEG, AUTOWARE_MASK),
    *(IMAGE_LEVEL_MASK, REGION_OUTCOMES),
    *STAGE_TOPICS.values(),
    DIAGNOSTICS,
)
#: Service of the type std_srvs/srv/Trigger.
CAPTURE_SERVICE = "~/capture"
#: Keys of the values in DIAGNOSTICS.
DIAGNOSTIC_KEYS = {
    "mode": "what comes out: full (masks of all levels that `refine` asks for), image level only, no masks, or "
    "stopped (the node is unconfigured, or its engines could not be loaded)",
    "last_mask_stamp": "stamp, in seconds, of the image of the last mask",
    "received": "images that reached the node, since configure",
    "processed": "masks published",
    "failed": "images without a mask because of an error",
    "dropped": "images never processed: overwritten by a newer one, lost in the transport, or too early for engines",
    "lost": "images lost in the transport, if the middleware reports it; part of dropped",
    "rate_hz": "masks per second, over the last 5 s",
    "regions_left_out": "regions not read because `deadline_ms` left no time for them",
    "regions_late": "regions dropped because they were not read and merged by the deadline",
    "hardness_late": "masks of the image level alone, because the boxes were not known by the deadline",
    "reliability": "how the node subscribes to the images: reliable or best effort",
    "publishers": "full names of the nodes that publish the images",
    "image_sizes": "number of sizes for which the engines were prepared",
    "refinement_failed": "masks of the image level alone, because the hardness or region engine failed or hangs",
    "light_level": "mean linear luminance of the last frame, 0 to 1",
    "refine_reason": "why the last frame was refined (always, night) or not (day, never): the setting, or the light",
    "frame_age_ms_p50, _p95, _p99": "percentiles from the image's stamp until its mask, over the last 100 frames",
    "STAGE_ms_p50, _p95, _p99": "percentiles of each stage above, over the last 100 frames in which it ran",
    "engine, bundle": "the inference library and the name of the bundle",
    "version, bundle_sha256": "version of the package, and SHA-256 of bundle.yaml, which holds those of the networks",
    "engine_note": "the reason why a faster engine was skipped, and the remedy",
    "frame_in_progress_s": "seconds since the frame in progress was begun, if there is one",
    "build_network, build_percent, build_phase": "progress of a build of TensorRT plans, while configuring",
}
