"""tf.train.Example, the message that records are, without TensorFlow."""

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory


def _example_class() -> type[message.Message]:
  """tf.train.Example with the field numbers of TensorFlow, in a pool of its own."""
  file = descriptor_pb2.FileDescriptorProto(
    name="vilau_jax/example.proto", package="vilau_jax", syntax="proto3"
  )
  field = descriptor_pb2.FieldDescriptorProto
  for name, kind in (
    ("BytesList", field.TYPE_BYTES),
    ("FloatList", field.TYPE_FLOAT),
    ("Int64List", field.TYPE_INT64),
  ):
    file.message_type.add(name=name).field.add(
      name="value", number=1, type=kind, label=field.LABEL_REPEATED
    )
  feature = file.message_type.add(name="Feature")
  feature.oneof_decl.add(name="kind")
  for number, (name, kind) in enumerate(
    (("bytes_list", "BytesList"), ("float_list", "FloatList"), ("int64_list", "Int64List")), 1
  ):
    feature.field.add(
      name=name, number=number, type=field.TYPE_MESSAGE, type_name=f".vilau_jax.{kind}",
      label=field.LABEL_OPTIONAL, oneof_index=0,
    )  # fmt: skip
  features = file.message_type.add(name="Features")
  entry = features.nested_type.add(name="FeatureEntry")
  entry.options.map_entry = True
  entry.field.add(name="key", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
  for parent, name, kind, label in (
    (entry, "value", "Feature", field.LABEL_OPTIONAL),
    (features, "feature", "Features.FeatureEntry", field.LABEL_REPEATED),
    (file.message_type.add(name="Example"), "features", "Features", field.LABEL_OPTIONAL),
  ):
    parent.field.add(
      name=name, number=2 if parent is entry else 1, type=field.TYPE_MESSAGE,
      type_name=f".vilau_jax.{kind}", label=label,
    )  # fmt: skip
  pool = descriptor_pool.DescriptorPool()
  pool.Add(file)
  return message_factory.GetMessageClass(pool.FindMessageTypeByName("vilau_jax.Example"))


Example = _example_class()
