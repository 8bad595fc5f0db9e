// Declarations only, of what deploy/examples/cpp uses of ONNX Runtime's C++ API, so that a compiler
// can check the example's syntax and types where the real headers are not to be had.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

enum OrtLoggingLevel { ORT_LOGGING_LEVEL_WARNING = 2 };
enum OrtAllocatorType { OrtDeviceAllocator = 0 };
enum OrtMemType { OrtMemTypeCPU = -1 };
struct OrtAllocator;
struct OrtMemoryInfo;

namespace Ort {

struct AllocatorWithDefaultOptions {
    operator OrtAllocator*() const;
};

struct MemoryInfo {
    static MemoryInfo CreateCpu(OrtAllocatorType type, OrtMemType memory);
    operator const OrtMemoryInfo*() const;
};

struct Value {
    Value(const Value&) = delete;
    Value(Value&&) = default;
    template <typename T>
    static Value CreateTensor(const OrtMemoryInfo* info, T* data, std::size_t count,
                              const std::int64_t* shape, std::size_t dimensions);
};

struct Env {
    Env(OrtLoggingLevel level, const char* name);
};

struct SessionOptions {
    SessionOptions& SetIntraOpNumThreads(int count);
    SessionOptions& SetInterOpNumThreads(int count);
    SessionOptions& AddConfigEntry(const char* key, const char* value);
};

struct RunOptions {
    explicit RunOptions(std::nullptr_t);
};

struct FreeText {
    void operator()(char* text) const;
};

struct ModelMetadata {
    std::unique_ptr<char, FreeText> LookupCustomMetadataMapAllocated(const char* key,
                                                                     OrtAllocator* memory) const;
};

struct Session {
    Session(const Env& env, const char* path, const SessionOptions& options);
    ModelMetadata GetModelMetadata() const;
    void Run(const RunOptions& options, const char* const* input_names, const Value* inputs,
             std::size_t input_count, const char* const* output_names, Value* outputs,
             std::size_t output_count);
};

}  // namespace Ort
