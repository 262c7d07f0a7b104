"""``from upscore.caffe.proto import caffe_pb2``: where programs look for Caffe's messages."""
