"""Detections of an edgesmith bundle as vision_msgs."""
