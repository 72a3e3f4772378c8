// What a receiver makes of the air: mixing, another clock, thermal noise, leakage, an 8-bit converter.
#pragma once

#include <cmath>
#include <vector>

#include "medium.hpp"

constexpr double TX_FULL_SCALE_DBM = -51.0;  // of a sample of 1 at all gains 0; +10 dBm with all 61 dB
constexpr double RX_FULL_SCALE_DBM = 0.0;    // that drives the converter full at all gains 0
constexpr double THERMAL_DBM_HZ = -174.0;

inline double amplitude(double db) { return std::pow(10.0, db / 20.0); }

// Gaussian numbers: a random 16-bit index into the quantiles of the distribution, which end at 4.3 sigma.
class Gauss {
public:
    explicit Gauss(uint64_t seed) : quantiles_(65536)
    {
        double x = 0.0;
        for (int i = 0; i < 32768; ++i) {
            const double upper = 0.5 - (i + 0.5) / 65536.0;  // wanted: P(X > x)
            for (int turn = 0; turn < 4; ++turn) {
                const double density = std::exp(-0.5 * x * x) / std::sqrt(2.0 * M_PI);
                x += (0.5 * std::erfc(x / std::sqrt(2.0)) - upper) / density;
            }
            quantiles_[32768 + i] = static_cast<float>(x);
            quantiles_[32767 - i] = static_cast<float>(-x);
        }
        for (auto& word : state_) {  // splitmix64
            uint64_t z = (seed += 0x9e3779b97f4a7c15ULL);
            z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
            z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
            word = z ^ (z >> 31);
        }
    }

    // Four numbers.
    void next(float* out)
    {
        const uint64_t bits = random();
        for (int i = 0; i < 4; ++i) out[i] = quantiles_[(bits >> (16 * i)) & 0xffff];
    }

private:
    uint64_t random()  // xoshiro256++
    {
        const auto turn = [](uint64_t value, int by) { return (value << by) | (value >> (64 - by)); };
        const uint64_t result = turn(state_[0] + state_[3], 23) + state_[0];
        const uint64_t shifted = state_[1] << 17;
        state_[2] ^= state_[0];
        state_[3] ^= state_[1];
        state_[1] ^= state_[2];
        state_[0] ^= state_[3];
        state_[2] ^= shifted;
        state_[3] = turn(state_[3], 45);
        return result;
    }

    std::vector<float> quantiles_;
    uint64_t state_[4];
};

struct Impairments {
    double attenuation_db = 60.0;  // between the connectors
    double noise_figure_db = 10.0;
    double cfo_hz = 0.0;     // the receiver's oscillator is so much too low
    double clock_ppm = 0.0;  // the receiver's clock is so much faster
    double leak = 0.0;       // of the oscillator into the converter's branches, of full scale
    uint64_t seed = 0;
};

class Frontend {
public:
    explicit Frontend(const Impairments& what) : what_(what), gauss_(what.seed), bank_(PHASES * TAPS)
    {
        for (int phase = 0; phase < PHASES; ++phase) {
            for (int tap = 0; tap < TAPS; ++tap) {
                const double t = tap - (TAPS / 2 - 1) - static_cast<double>(phase) / PHASES;
                const double window = 0.5 + 0.5 * std::cos(2.0 * M_PI * t / (TAPS + 1));
                const double sinc = t == 0.0 ? 1.0 : std::sin(M_PI * t) / (M_PI * t);
                bank_[phase * TAPS + tap] = static_cast<float>(sinc * window);
            }
        }
    }

    // One transfer of the converter, which begins at the air's sample `start` (a fraction when the clocks differ).
    void receive(const Medium& medium, double start, double rate, double frequency, double gain_db, int8_t* out)
    {
        const double step = 1.0 / (1.0 + 1e-6 * what_.clock_ppm);
        const int64_t first = static_cast<int64_t>(std::floor(start)) - TAPS;
        const int64_t count = static_cast<int64_t>(std::ceil(TRANSFER * step)) + 2 * TAPS + 2;
        const bool silent = !load(medium, first, count, rate, frequency);
        const double to_converter = amplitude(gain_db - RX_FULL_SCALE_DBM);
        const double signal = to_converter * amplitude(-what_.attenuation_db);
        const double noise_dbm = THERMAL_DBM_HZ + 10.0 * std::log10(rate) + what_.noise_figure_db;
        const float sigma = static_cast<float>(to_converter * amplitude(noise_dbm) / std::sqrt(2.0));
        const float leak = static_cast<float>(what_.leak);
        const double turn = -2.0 * M_PI * (frequency - what_.cfo_hz) / rate;
        float noise[4];
        for (int64_t i = 0; i < TRANSFER; ++i) {
            if (i % 2 == 0) gauss_.next(noise);
            std::complex<float> value(leak + sigma * noise[2 * (i % 2)], leak + sigma * noise[2 * (i % 2) + 1]);
            if (!silent) {
                const double place = start + i * step - first;
                const auto whole = static_cast<int64_t>(place);
                value += static_cast<float>(signal) * interpolate(whole, place - whole) * rotation_;
                if (i % 1024 == 1023) rotation_ /= std::abs(rotation_);
            }
            rotation_ *= turn_of(turn + offset_);
            out[2 * i] = convert(value.real());
            out[2 * i + 1] = convert(value.imag());
        }
    }

private:
    static constexpr int TAPS = 16, PHASES = 512;

    static int8_t convert(float value)
    {
        return static_cast<int8_t>(std::lrintf(std::fmin(std::fmax(value * 128.0F, -128.0F), 127.0F)));
    }

    std::complex<float> turn_of(double angle)
    {
        if (angle != angle_) {
            angle_ = angle;
            turned_ = {static_cast<float>(std::cos(angle)), static_cast<float>(std::sin(angle))};
        }
        return turned_;
    }

    std::complex<float> interpolate(int64_t whole, double fraction) const
    {
        const auto phase = static_cast<int>(fraction * PHASES);
        if (phase == 0) return window_[whole];
        const float* taps = &bank_[phase * TAPS];
        const std::complex<float>* from = &window_[whole - (TAPS / 2 - 1)];
        float real = 0.0F, imag = 0.0F;
        for (int tap = 0; tap < TAPS; ++tap) {
            real += taps[tap] * from[tap].real();
            imag += taps[tap] * from[tap].imag();
        }
        return {real, imag};
    }

    // Copy samples of the air into the window; tell whether anybody within half the rate was sending.
    bool load(const Medium& medium, int64_t first, int64_t count, double rate, double frequency)
    {
        bool any = false;
        window_.assign(count, {});
        for (int64_t at = first; at < first + count;) {
            const int64_t number = at >= 0 ? at / TRANSFER : -1;
            const int64_t end = std::min(number >= 0 ? (number + 1) * TRANSFER : 0, first + count);
            const Slot* slot = medium.get(number, rate);
            if (slot != nullptr && std::fabs(slot->frequency - frequency) < rate / 2) {
                any = true;
                offset_ = 2.0 * M_PI * slot->frequency / rate;
                const int8_t* from = slot->samples + 2 * (at - number * TRANSFER);
                const auto scale = static_cast<float>(slot->level / 127.0);
                for (int64_t i = 0; i < end - at; ++i)
                    window_[at - first + i] = {scale * from[2 * i], scale * from[2 * i + 1]};
            }
            at = end;
        }
        return any;
    }

    Impairments what_;
    Gauss gauss_;
    std::vector<float> bank_;
    std::vector<std::complex<float>> window_;
    std::complex<float> rotation_{1.0F, 0.0F}, turned_{1.0F, 0.0F};
    double offset_ = 0.0;  // turn per sample by the transmitter's carrier
    double angle_ = 0.0;
};
