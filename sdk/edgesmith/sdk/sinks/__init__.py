"""Where results go.

| kind | what it makes of results | needs |
|---|---|---|
| ``events`` | a picture and a JSON line when a class appears; the folder keeps to a size | |
| ``jsonl`` | a JSON line a frame | |
| ``mcap`` | a recording that opens in Foxglove | ``edgesmith[mcap]`` |
| ``mqtt`` | a message a frame, and a retained status with a last will | ``edgesmith[mqtt]`` |
| ``pictures`` | an annotated picture a frame | |
| ``ros2`` | ``vision_msgs/Detection2DArray``, pictures on request | ROS 2 Humble or later |
| ``video`` | an annotated video, H.264 where it can | ``edgesmith[video]`` for H.264 |
| ``view`` | a live page, and ``/health`` | |
| ``watchdog`` | readiness and signs of life for systemd | |
| ``window`` | a window on the screen | ``edgesmith[desktop]`` |

``open_sink(kind, **options)`` opens one behind a queue and a thread of its own; what its options are
stands at its class. Any object with ``notes``, ``write`` and ``close`` is a sink too.
"""
