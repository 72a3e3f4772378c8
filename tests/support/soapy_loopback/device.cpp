// A SoapySDR device that hears itself, for tests: 8-bit samples in transfers of 262144 bytes, as HackRF has, in real
// time, with a loss of samples when the program is late.
//
// Arguments, all optional:
//   serial=NAME        which device; devices of one name are the same (default "0")
//   air=FOLDER         the medium and the locks lie there, so that other processes share them; default: this process
//   attenuation=DB     between the connectors (60)        noise_figure=DB   of the receiver (10)
//   cfo=HZ  ppm=PPM    of the receiver's oscillator and clock against the transmitter's
//   leak=X             oscillator leakage, of the converter's full scale: the spike at DC
//   seed=N             of the noise
//   throttle=0         as fast as the program is; nothing is lost
//   rate_max=HZ        of the range it names (20e6)
// and how it fails:
//   deny=1             opening: no permission              refuse_rate=1     every sample rate
//   unplug=SECONDS     of stream, then every call fails    silent=SECONDS    of stream, then nothing comes or goes
//   hang=SECONDS       of stream, then calls do not return

#include <SoapySDR/Device.hpp>
#include <SoapySDR/Errors.hpp>
#include <SoapySDR/Formats.hpp>
#include <SoapySDR/Registry.hpp>

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <thread>

#include "frontend.hpp"

namespace {

constexpr int64_t POLL_NS = 200'000;

double number(const SoapySDR::Kwargs& args, const std::string& key, double usual)
{
    const auto found = args.find(key);
    return found == args.end() ? usual : std::stod(found->second);
}

std::string text(const SoapySDR::Kwargs& args, const std::string& key, const std::string& usual)
{
    const auto found = args.find(key);
    return found == args.end() ? usual : found->second;
}

void sleep_ns(int64_t duration) { std::this_thread::sleep_for(std::chrono::nanoseconds(duration)); }

// 8-bit pairs into what the program asked for, and back.
struct Format {
    size_t bytes;
    void (*from_device)(const int8_t*, void*, size_t);
    void (*to_device)(const void*, int8_t*, size_t);
};

template <typename T, int SCALE>
void widen(const int8_t* in, void* out, size_t count)
{
    for (size_t i = 0; i < 2 * count; ++i) static_cast<T*>(out)[i] = static_cast<T>(in[i]) * static_cast<T>(SCALE);
}

template <typename T, int SCALE>
void narrow(const void* in, int8_t* out, size_t count)
{
    for (size_t i = 0; i < 2 * count; ++i)
        out[i] = static_cast<int8_t>(static_cast<const T*>(in)[i] / static_cast<T>(SCALE));
}

void to_float(const int8_t* in, void* out, size_t count)
{
    for (size_t i = 0; i < 2 * count; ++i) static_cast<float*>(out)[i] = in[i] / 128.0F;
}

// As HackRF's driver: a value beyond 1 wraps around.
void from_float(const void* in, int8_t* out, size_t count)
{
    for (size_t i = 0; i < 2 * count; ++i)
        out[i] = static_cast<int8_t>(static_cast<int>(std::lrintf(static_cast<const float*>(in)[i] * 127.0F)));
}

const std::map<std::string, Format> FORMATS{
    {SOAPY_SDR_CS8, {2, widen<int8_t, 1>, narrow<int8_t, 1>}},
    {SOAPY_SDR_CS16, {4, widen<int16_t, 256>, narrow<int16_t, 256>}},
    {SOAPY_SDR_CF32, {8, to_float, from_float}},
};

struct Direction {
    std::vector<std::pair<std::string, SoapySDR::Range>> gains;
    std::map<std::string, double> gain;
    double rate = 2e6, frequency = 100e6;
    const Format* format = nullptr;
    bool active = false;
    int64_t next = -1;          // number of the next transfer; of the transmitter on the air's scale
    int64_t passed = 0;         // samples since the device was opened
    size_t filled = 0;          // samples of `transfer` written, or read
    std::vector<int8_t> transfer = std::vector<int8_t>(2 * TRANSFER);
    std::mutex mutex;

    double total_gain() const
    {
        double sum = 0.0;
        for (const auto& stage : gain) sum += stage.second;
        return sum;
    }
};

class Loopback : public SoapySDR::Device {
public:
    explicit Loopback(const SoapySDR::Kwargs& args)
        : args_(args),
          throttle_(number(args, "throttle", 1) != 0),
          lock_(text(args, "air", "").empty()
                    ? nullptr
                    : std::make_unique<Lock>(text(args, "air", "") + "/" + text(args, "serial", "0") + ".lock")),
          medium_(text(args, "air", "")),
          frontend_({number(args, "attenuation", 60), number(args, "noise_figure", 10), number(args, "cfo", 0),
                     number(args, "ppm", 0), number(args, "leak", 0),
                     static_cast<uint64_t>(number(args, "seed", 0))})
    {
        if (!throttle_ && lock_) throw std::runtime_error("throttle=0 and air=: only one process can be unthrottled");
        tx_.gains = {{"VGA", {0, 47, 1}}, {"AMP", {0, 14, 14}}};
        rx_.gains = {{"LNA", {0, 40, 8}}, {"AMP", {0, 14, 14}}, {"VGA", {0, 62, 2}}};
        for (Direction* side : {&tx_, &rx_})
            for (const auto& stage : side->gains) side->gain[stage.first] = 0.0;
    }

    std::string getDriverKey() const override { return "multisc_loopback"; }
    std::string getHardwareKey() const override { return "loopback"; }
    size_t getNumChannels(int) const override { return 1; }
    bool getFullDuplex(int, size_t) const override { return true; }

    std::vector<std::string> getStreamFormats(int, size_t) const override
    {
        return {SOAPY_SDR_CS8, SOAPY_SDR_CS16, SOAPY_SDR_CF32};
    }
    std::string getNativeStreamFormat(int, size_t, double& full_scale) const override
    {
        full_scale = 128;
        return SOAPY_SDR_CS8;
    }

    std::vector<std::string> listAntennas(int, size_t) const override { return {"TX/RX"}; }
    void setAntenna(int, size_t, const std::string& name) override
    {
        if (name != "TX/RX") throw std::runtime_error("no antenna " + name);
    }
    std::string getAntenna(int, size_t) const override { return "TX/RX"; }

    std::vector<std::string> listGains(int direction, size_t) const override
    {
        std::vector<std::string> names;
        for (const auto& stage : side(direction).gains) names.push_back(stage.first);
        return names;
    }
    SoapySDR::Range getGainRange(int direction, size_t, const std::string& name) const override
    {
        for (const auto& stage : side(direction).gains)
            if (stage.first == name) return stage.second;
        throw std::runtime_error("no gain " + name);
    }
    SoapySDR::Range getGainRange(int direction, size_t channel) const override
    {
        return SoapySDR::Device::getGainRange(direction, channel);
    }
    void setGain(int direction, size_t channel, const std::string& name, double value) override
    {
        const SoapySDR::Range range = getGainRange(direction, channel, name);
        const double clipped = std::min(std::max(value, range.minimum()), range.maximum());
        side(direction).gain[name] = range.step() * std::floor(clipped / range.step() + 1e-6);
    }
    void setGain(int direction, size_t channel, double value) override
    {
        SoapySDR::Device::setGain(direction, channel, value);
    }
    double getGain(int direction, size_t, const std::string& name) const override
    {
        return side(direction).gain.at(name);
    }
    double getGain(int direction, size_t) const override { return side(direction).total_gain(); }

    std::vector<std::string> listFrequencies(int, size_t) const override { return {"RF"}; }
    SoapySDR::RangeList getFrequencyRange(int, size_t, const std::string&) const override { return {{1e6, 6e9}}; }
    SoapySDR::RangeList getFrequencyRange(int, size_t) const override { return {{1e6, 6e9}}; }
    void setFrequency(int direction, size_t, const std::string&, double frequency, const SoapySDR::Kwargs&) override
    {
        side(direction).frequency = frequency;
    }
    void setFrequency(int direction, size_t, double frequency, const SoapySDR::Kwargs&) override
    {
        side(direction).frequency = frequency;
    }
    double getFrequency(int direction, size_t, const std::string&) const override { return side(direction).frequency; }
    double getFrequency(int direction, size_t) const override { return side(direction).frequency; }

    SoapySDR::RangeList getSampleRateRange(int, size_t) const override
    {
        return {{1e6, number(args_, "rate_max", 20e6)}};
    }
    void setSampleRate(int direction, size_t, double rate) override
    {
        if (number(args_, "refuse_rate", 0) != 0) throw std::runtime_error("setSampleRate failed: invalid parameter");
        side(direction).rate = rate;
    }
    double getSampleRate(int direction, size_t) const override { return side(direction).rate; }

    SoapySDR::Stream* setupStream(int direction, const std::string& format, const std::vector<size_t>& channels,
                                  const SoapySDR::Kwargs&) override
    {
        if (channels.size() > 1 || (channels.size() == 1 && channels[0] != 0))
            throw std::runtime_error("there is one channel");
        const auto found = FORMATS.find(format);
        if (found == FORMATS.end()) throw std::runtime_error("no format " + format);
        side(direction).format = &found->second;
        return reinterpret_cast<SoapySDR::Stream*>(&side(direction));
    }
    void closeStream(SoapySDR::Stream* stream) override { deactivateStream(stream, 0, 0); }
    size_t getStreamMTU(SoapySDR::Stream*) const override { return TRANSFER; }

    int activateStream(SoapySDR::Stream* stream, int, long long, size_t) override
    {
        Direction& which = *reinterpret_cast<Direction*>(stream);
        const std::lock_guard<std::mutex> guard(which.mutex);
        which.active = true;
        which.next = -1;
        which.filled = &which == &tx_ ? 0 : TRANSFER;
        if (&which == &rx_) {
            began_ = throttle_ ? medium_.seconds() : 0.0;
            which.next = 0;
            if (!throttle_) medium_.air->heard = 0;
        } else if (!throttle_) {
            which.next = medium_.air->heard.load() + 2;
            medium_.air->sent = which.next;
        }
        return 0;
    }
    int deactivateStream(SoapySDR::Stream* stream, int, long long) override
    {
        Direction& which = *reinterpret_cast<Direction*>(stream);
        const std::lock_guard<std::mutex> guard(which.mutex);
        which.active = false;
        if (!throttle_) (&which == &tx_ ? medium_.air->sent : medium_.air->heard) = -1;
        return 0;
    }

    int writeStream(SoapySDR::Stream*, const void* const* buffers, size_t count, int&, long long, long timeout) override
    {
        const std::lock_guard<std::mutex> guard(tx_.mutex);
        if (const int failure = failed(tx_, timeout)) return failure;
        if (tx_.filled == TRANSFER) {
            const int status = throttle_ ? await_turn(timeout) : await_receiver(timeout);
            if (status != 0) return status;
            const double level = amplitude(TX_FULL_SCALE_DBM + tx_.total_gain());
            medium_.put(tx_.next, tx_.transfer.data(), tx_.rate, tx_.frequency, level);
            ++tx_.next;
            tx_.filled = 0;
            if (!throttle_) medium_.air->sent = tx_.next;
        }
        const size_t taken = std::min(count, static_cast<size_t>(TRANSFER) - tx_.filled);
        tx_.format->to_device(buffers[0], &tx_.transfer[2 * tx_.filled], taken);
        tx_.filled += taken;
        tx_.passed += static_cast<int64_t>(taken);
        return static_cast<int>(taken);
    }

    int readStream(SoapySDR::Stream*, void* const* buffers, size_t count, int&, long long&, long timeout) override
    {
        const std::lock_guard<std::mutex> guard(rx_.mutex);
        if (const int failure = failed(rx_, timeout)) return failure;
        if (rx_.filled == TRANSFER) {
            const double clock = rx_.rate * (1.0 + 1e-6 * number(args_, "ppm", 0));
            const int status = throttle_ ? await_transfer(clock, timeout) : await_transmitter(clock, timeout);
            if (status != 0) return status;
            // A transfer late, so that a transmitter that is just putting one on the air is not heard by halves.
            const double start = (began_ + rx_.next * TRANSFER / clock) * rx_.rate - (throttle_ ? TRANSFER : 0);
            frontend_.receive(medium_, start, rx_.rate, rx_.frequency, rx_.total_gain(), rx_.transfer.data());
            ++rx_.next;
            rx_.filled = 0;
            if (!throttle_) medium_.air->heard = rx_.next;
        }
        const size_t given = std::min(count, static_cast<size_t>(TRANSFER) - rx_.filled);
        rx_.format->from_device(&rx_.transfer[2 * rx_.filled], buffers[0], given);
        rx_.filled += given;
        rx_.passed += static_cast<int64_t>(given);
        return static_cast<int>(given);
    }

private:
    Direction& side(int direction) { return direction == SOAPY_SDR_TX ? tx_ : rx_; }
    const Direction& side(int direction) const { return direction == SOAPY_SDR_TX ? tx_ : rx_; }

    int failed(const Direction& which, long timeout) const
    {
        const double passed = static_cast<double>(which.passed) / which.rate;
        if (passed >= number(args_, "unplug", 1e12)) return SOAPY_SDR_STREAM_ERROR;
        while (passed >= number(args_, "hang", 1e12)) sleep_ns(1'000'000'000);
        if (passed < number(args_, "silent", 1e12)) return 0;
        sleep_ns(1000 * timeout);
        return SOAPY_SDR_TIMEOUT;
    }

    // Real time. The transmitter's clock is the air's: transfer n is on the air from second n * TRANSFER / rate on.
    int await_turn(long timeout)
    {
        const auto current = [this] { return static_cast<int64_t>(medium_.seconds() * tx_.rate / TRANSFER); };
        if (tx_.next < 0) tx_.next = current() + 1;
        if (tx_.next <= current()) {  // the device has sent zeros meanwhile
            tx_.next = current() + 1;
            return SOAPY_SDR_UNDERFLOW;
        }
        const int64_t give_up = now_ns() + 1000 * timeout;
        while (tx_.next > current() + RING) {
            if (now_ns() >= give_up) return SOAPY_SDR_TIMEOUT;
            const double due = static_cast<double>(tx_.next - RING) * TRANSFER / tx_.rate;
            const auto left = static_cast<int64_t>(1e9 * (due - medium_.seconds()));
            sleep_ns(std::min(std::max<int64_t>(left, POLL_NS), std::max<int64_t>(give_up - now_ns(), 1)));
        }
        return 0;
    }

    int await_transfer(double clock, long timeout)
    {
        const auto complete = [&] { return static_cast<int64_t>((medium_.seconds() - began_) * clock / TRANSFER); };
        if (complete() - rx_.next > RING) {  // the oldest are gone
            rx_.next = complete() - RING;
            return SOAPY_SDR_OVERFLOW;
        }
        const int64_t give_up = now_ns() + 1000 * timeout;
        while (complete() <= rx_.next) {
            if (now_ns() >= give_up) return SOAPY_SDR_TIMEOUT;
            const double due = began_ + static_cast<double>(rx_.next + 1) * TRANSFER / clock;
            const auto left = static_cast<int64_t>(1e9 * (due - medium_.seconds()));
            sleep_ns(std::min(std::max<int64_t>(left, POLL_NS), std::max<int64_t>(give_up - now_ns(), 1)));
        }
        return 0;
    }

    // Without a clock: transmitter and receiver wait for each other.
    template <typename Ready>
    int await(const Ready& ready, long timeout) const
    {
        const int64_t give_up = now_ns() + 1000 * timeout;
        while (!ready()) {
            if (now_ns() >= give_up) return SOAPY_SDR_TIMEOUT;
            sleep_ns(POLL_NS);
        }
        return 0;
    }

    int await_receiver(long timeout) const
    {
        // As long as nobody receives it sends in real time: a receiver that is about to start misses nothing.
        const int64_t due = now_ns() + static_cast<int64_t>(1e9 * TRANSFER / tx_.rate);
        return await([this, due] {
            const int64_t heard = medium_.air->heard.load();
            return heard < 0 ? now_ns() >= due : tx_.next < heard + RING;
        }, timeout);
    }

    int await_transmitter(double clock, long timeout) const
    {
        const double end = (rx_.next + 1) * TRANSFER / clock * rx_.rate;
        return await([this, end] {
            const int64_t sent = medium_.air->sent.load();
            return sent < 0 || static_cast<double>(sent * TRANSFER) > end + 64;
        }, timeout);
    }

    SoapySDR::Kwargs args_;
    bool throttle_;
    std::unique_ptr<Lock> lock_;
    Medium medium_;
    Frontend frontend_;
    Direction tx_, rx_;
    double began_ = 0.0;  // of the receiver's stream, on the air's clock
};

SoapySDR::KwargsList find(const SoapySDR::Kwargs& args)
{
    const std::string driver = text(args, "driver", "multisc_loopback");
    if (driver != "multisc_loopback") return {};
    SoapySDR::Kwargs found = args;  // with all arguments, so that both directions get one device
    found["driver"] = driver;
    found["serial"] = text(args, "serial", "0");
    found["label"] = "loopback " + found["serial"];
    return {found};
}

SoapySDR::Device* make(const SoapySDR::Kwargs& args)
{
    if (number(args, "deny", 0) != 0)
        throw std::runtime_error("open failed: Access denied (insufficient permissions)");
    return new Loopback(args);
}

const SoapySDR::Registry registered("multisc_loopback", &find, &make, SOAPY_SDR_ABI_VERSION);

}  // namespace
