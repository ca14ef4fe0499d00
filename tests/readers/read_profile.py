"""Reads a profile with Python's protobuf and prints what is in it as JSON.

For OTLP (.otlp) the messages are those of the package opentelemetry-proto; for pprof (.pb.gz) they
are described here, from the comments of profile.proto.
"""

import collections
import gzip
import json
import sys

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory


def pprof_message():
    """The class of perftools.profiles.Profile."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="profile.proto", package="perftools.profiles", syntax="proto3"
    )
    messages = {
        "ValueType": "1 type int64, 2 unit int64",
        "Label": "1 key int64, 2 str int64, 3 num int64, 4 num_unit int64",
        "Sample": "1 location_id uint64*, 2 value int64*, 3 label Label*",
        "Mapping": "1 id uint64, 2 memory_start uint64, 3 memory_limit uint64, "
        "4 file_offset uint64, 5 filename int64, 6 build_id int64",
        "Line": "1 function_id uint64, 2 line int64, 3 column int64",
        "Location": "1 id uint64, 2 mapping_id uint64, 3 address uint64, 4 line Line*",
        "Function": "1 id uint64, 2 name int64, 3 system_name int64, 4 filename int64, "
        "5 start_line int64",
        "Profile": "1 sample_type ValueType*, 2 sample Sample*, 3 mapping Mapping*, "
        "4 location Location*, 5 function Function*, 6 string_table string*, "
        "9 time_nanos int64, 10 duration_nanos int64, 11 period_type ValueType, 12 period int64",
    }
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for text in fields.split(", "):
            number, field, kind = text.split(" ")
            is_list, kind = kind.endswith("*"), kind.rstrip("*")
            descriptor = message.field.add(
                name=field,
                number=int(number),
                label=kinds.LABEL_REPEATED if is_list else kinds.LABEL_OPTIONAL,
            )
            if kind in messages:
                descriptor.type = kinds.TYPE_MESSAGE
                descriptor.type_name = f".perftools.profiles.{kind}"
            else:
                descriptor.type = getattr(kinds, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(
        pool.FindMessageTypeByName("perftools.profiles.Profile")
    )


def read_pprof(path):
    profile = pprof_message()()
    with gzip.open(path) as file:
        profile.ParseFromString(file.read())
    text = profile.string_table
    locations = {location.id: location for location in profile.location}
    functions = {function.id: text[function.name] for function in profile.function}
    stacks, labels = collections.Counter(), set()
    for sample in profile.sample:
        labels.update(text[label.key] for label in sample.label)
        comm = next(text[label.str] for label in sample.label if text[label.key] == "comm")
        names = [
            functions[line.function_id]
            for location in sample.location_id
            for line in locations[location].line
        ]
        stacks[";".join([comm] + names[::-1])] += sample.value[0]
    return {
        "types": [f"{text[t.type]}/{text[t.unit]}" for t in profile.sample_type],
        "labels": sorted(labels),
        "nanoseconds": sum(sample.value[1] for sample in profile.sample),
        "build_ids": {text[m.filename]: text[m.build_id] for m in profile.mapping},
        "stacks": stacks,
    }


def read_otlp(path):
    from opentelemetry.proto.collector.profiles.v1development import profiles_service_pb2

    request = profiles_service_pb2.ExportProfilesServiceRequest()
    with open(path, "rb") as file:
        request.ParseFromString(file.read())
    tables = request.dictionary
    text = tables.string_table
    stacks = collections.Counter()
    for resource in request.resource_profiles:
        names = {a.key: a.value.string_value for a in resource.resource.attributes}
        for scope in resource.scope_profiles:
            for profile in scope.profiles:
                for sample in profile.samples:
                    functions = [
                        text[tables.function_table[line.function_index].name_strindex]
                        for location in tables.stack_table[sample.stack_index].location_indices
                        for line in tables.location_table[location].lines
                    ]
                    process = names["process.executable.name"]
                    stack = ";".join([process] + functions[::-1])
                    stacks[stack] += len(sample.timestamps_unix_nano)
    build_ids = {}
    for mapping in tables.mapping_table[1:]:
        for index in mapping.attribute_indices:
            attribute = tables.attribute_table[index]
            if text[attribute.key_strindex] == "process.executable.build_id.gnu":
                build_ids[text[mapping.filename_strindex]] = attribute.value.string_value
    return {"build_ids": build_ids, "stacks": stacks}


path = sys.argv[1]
print(json.dumps(read_otlp(path) if path.endswith(".otlp") else read_pprof(path)))
