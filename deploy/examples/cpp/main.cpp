// Runs a policy of widen with ONNX Runtime alone: run_policy POLICY.onnx
//
// Replays the file's golden vectors, prints the largest error and shows one control step. Exit code
// 1 when the error is above 1e-5 rad. docs/policy-contract.md explains what is read here.

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

struct Json {
    double number = 0.0;
    std::string text;
    std::vector<std::pair<std::string, Json>> items;  // of a list, the keys are empty

    const Json& operator[](const std::string& key) const {
        for (const auto& [name, value] : items)
            if (name == key) return value;
        throw std::runtime_error("the metadata lacks " + key);
    }
    template <typename T>
    std::vector<T> numbers() const {
        std::vector<T> all;
        for (const auto& item : items) all.push_back(static_cast<T>(item.second.number));
        return all;
    }
};

// Reads one value and moves `at` beyond it. As much as the metadata needs: escapes in strings, which
// the names have not, lose their backslash; true, false and null become 0.
Json read_json(const char*& at) {
    const auto expect = [&at](bool good) {
        if (!good) throw std::runtime_error("the metadata is not JSON");
    };
    const auto next = [&at] { return *(at += std::strspn(at, " \t\r\n")); };
    const auto read_text = [&] {
        std::string text;
        for (expect(*at++ == '"'); *at != '"'; text += *at++) expect(*at != 0 && *(at += *at == '\\'));
        ++at;
        return text;
    };
    Json value;
    const char first = next();
    if (first == '{' || first == '[') {
        for (++at; next() != '}' && *at != ']';) {
            std::string key;
            if (first == '{') {
                key = read_text();
                expect(next() == ':');
                ++at;
            }
            value.items.emplace_back(key, read_json(at));
            if (next() == ',') ++at;
        }
        ++at;
    } else if (first == '"') {
        value.text = read_text();
    } else if (const auto letters = std::strspn(at, "aeflnrstu")) {
        at += letters;
    } else {
        char* end = nullptr;
        value.number = std::strtod(at, &end);
        expect(end != at);
        at = end;
    }
    return value;
}

// Arrays of one robot, allocated once, and the graph's views of them.
struct Tensors {
    std::vector<std::vector<float>> data;
    std::vector<Ort::Value> values;
    std::vector<const char*> names;  // the contract owns them

    void add(const Json& name, const Json& tensor) {
        static const auto memory = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeCPU);
        auto shape = tensor["shape"].numbers<std::int64_t>();
        std::size_t size = 1;
        for (const auto n : shape) size *= static_cast<std::size_t>(n);
        shape.insert(shape.begin(), 1);  // the batch axis
        data.emplace_back(size);
        names.push_back(name.text.c_str());
        values.push_back(Ort::Value::CreateTensor<float>(memory, data.back().data(), size,
                                                         shape.data(), shape.size()));
    }
};

struct Policy {
    Ort::Session session;
    const Json contract, golden;
    Tensors inputs, outputs;  // inputs: the readings, then the state; outputs: the next state

    Policy(Ort::Env& env, const char* path)
        : session(env, path, options()),
          contract(metadata("widen.contract")),
          golden(metadata("widen.golden")) {
        if (contract["schema"].text != "widen.policy/2")
            throw std::runtime_error("not made for " + contract["schema"].text);
        for (const auto& [_, reading] : contract["readings"].items)
            inputs.add(reading["name"], reading);
        for (const auto& [_, state] : contract["state"].items) {
            inputs.add(state["input"], state);
            outputs.add(state["output"], state);
        }
        begin();
    }
    static Ort::SessionOptions options() {
        Ort::SessionOptions options;
        options.SetIntraOpNumThreads(1).SetInterOpNumThreads(1);  // more only bring late cycles
        options.AddConfigEntry("session.intra_op.allow_spinning", "0");
        return options;
    }
    Json metadata(const char* key) {
        Ort::AllocatorWithDefaultOptions memory;
        const auto text = session.GetModelMetadata().LookupCustomMetadataMapAllocated(key, memory);
        if (!text) throw std::runtime_error(std::string("the file has no ") + key);
        const char* at = text.get();
        return read_json(at);
    }
    std::size_t readings() const { return inputs.data.size() - outputs.data.size(); }

    void begin() {  // an episode
        for (std::size_t i = 0; i < outputs.data.size(); ++i) {
            const auto initial = contract["state"].items[i].second["initial"].numbers<float>();
            std::copy(initial.begin(), initial.end(), inputs.data[readings() + i].begin());
        }
    }
    // One control period: joint targets [rad] from the readings that stand in inputs.data.
    const std::vector<float>& step() {
        session.Run(Ort::RunOptions{nullptr}, inputs.names.data(), inputs.values.data(),
                    inputs.values.size(), outputs.names.data(), outputs.values.data(),
                    outputs.values.size());
        for (std::size_t i = 0; i < outputs.data.size(); ++i)  // the arrays stay where they are
            std::copy(outputs.data[i].begin(), outputs.data[i].end(),
                      inputs.data[readings() + i].begin());
        return outputs.data[0];  // the first tensor of the state is joint_target
    }
    void recall(std::size_t t) {  // the golden readings of a step
        for (std::size_t i = 0; i < readings(); ++i) {
            const auto all = golden["readings"][inputs.names[i]]["values"].numbers<float>();
            auto at = t * inputs.data[i].size();
            for (float& value : inputs.data[i]) value = all.at(at++);
        }
    }
};

int main(int argc, char** argv) try {
    if (argc != 2) throw std::runtime_error("expected a policy: run_policy POLICY.onnx");
    Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "run_policy");
    Policy policy(env, argv[1]);

    const auto expected = policy.golden["outputs"]["joint_target"]["values"].numbers<float>();
    float error = 0.0F;
    for (std::size_t i = 0, t = 0; i < expected.size(); ++t) {
        policy.recall(t);
        for (const float angle : policy.step()) {
            const float off = std::abs(angle - expected.at(i++));
            if (!std::isnan(error) && !(off <= error)) error = off;  // NaN is the worst
        }
    }
    std::printf("largest error over the golden steps: %.2g rad\n", error);

    // One control step, as a controller takes it every control_period seconds with what it has
    // measured, in the contract's order of joints; here with the first of the golden readings.
    policy.begin();
    policy.recall(0);
    const auto& target = policy.step();
    const auto& about = policy.contract;
    const auto lower = about["lower"].numbers<float>(), upper = about["upper"].numbers<float>();
    for (std::size_t j = 0; j < target.size(); ++j)  // never beyond the limits
        std::printf("%-10s target %+.4f rad\n", about["joints"].items.at(j).second.text.c_str(),
                    std::clamp(target[j], lower.at(j), upper.at(j)));
    return error <= 1e-5F ? 0 : 1;
} catch (const std::exception& problem) {
    std::fprintf(stderr, "error: %s\n", problem.what());
    return 2;
}
