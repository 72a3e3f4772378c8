// The air between transmitters and receivers: 64 transfers of samples in memory that processes may share.
#pragma once

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <complex>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

constexpr int64_t TRANSFER = 131072;  // samples of a transfer: 262144 bytes, as HackRF's
constexpr int64_t RING = 15;          // transfers between a device and its driver
constexpr int64_t SLOTS = 64;         // on the air at once: what is ahead, what is behind, and more

inline int64_t now_ns()
{
    return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1);
}

struct Slot {
    std::atomic<int64_t> number;  // 1 + the number of the transfer since the epoch; 0 when empty
    double rate, frequency;       // Hz
    double level;                 // amplitude at the connector of a sample of 1, in sqrt(mW)
    int8_t samples[2 * TRANSFER];
};

struct Air {
    std::atomic<int64_t> epoch_ns;  // 0 until the first device is opened
    std::atomic<int64_t> sent;      // unthrottled: number of the next transfer of the transmitter that is on, or -1
    std::atomic<int64_t> heard;     // unthrottled: number of the transfer that the receiver reads next, or -1
    Slot slots[SLOTS];
};

// A file whose lock is held for as long as the object lives.
class Lock {
public:
    explicit Lock(const std::string& path)
    {
        fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (fd_ < 0) throw std::runtime_error(path + ": " + std::strerror(errno));
        if (::flock(fd_, LOCK_EX | LOCK_NB) != 0) {
            ::close(fd_);
            throw std::runtime_error("device is busy: another process has opened it");
        }
    }
    ~Lock() { ::close(fd_); }
    Lock(const Lock&) = delete;
    Lock& operator=(const Lock&) = delete;

private:
    int fd_;
};

class Medium {
public:
    // In the file `samples` of a folder, or in memory of this process when the folder's name is empty.
    explicit Medium(const std::string& folder)
    {
        int fd = -1;
        if (!folder.empty()) {
            const std::string path = folder + "/samples";
            fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
            if (fd < 0 || ::ftruncate(fd, sizeof(Air)) != 0) {
                const std::string reason = std::strerror(errno);
                if (fd >= 0) ::close(fd);
                throw std::runtime_error(path + ": " + reason);
            }
        }
        const int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
        void* memory = ::mmap(nullptr, sizeof(Air), PROT_READ | PROT_WRITE, flags, fd, 0);
        if (fd >= 0) ::close(fd);
        if (memory == MAP_FAILED) throw std::runtime_error("no memory for the air");
        air = static_cast<Air*>(memory);  // all zero bytes are a valid, empty Air
        int64_t none = 0;
        air->epoch_ns.compare_exchange_strong(none, now_ns());
        if (folder.empty()) {
            air->sent = -1;
            air->heard = -1;
        }
    }
    ~Medium() { ::munmap(air, sizeof(Air)); }
    Medium(const Medium&) = delete;
    Medium& operator=(const Medium&) = delete;

    double seconds() const { return 1e-9 * static_cast<double>(now_ns() - air->epoch_ns.load()); }

    void put(int64_t number, const int8_t* samples, double rate, double frequency, double level)
    {
        Slot& slot = air->slots[number % SLOTS];
        slot.number.store(0, std::memory_order_release);
        slot.rate = rate;
        slot.frequency = frequency;
        slot.level = level;
        std::memcpy(slot.samples, samples, sizeof slot.samples);
        slot.number.store(number + 1, std::memory_order_release);
    }

    // The transfer of this number, or null when nobody sends then at this rate.
    const Slot* get(int64_t number, double rate) const
    {
        if (number < 0) return nullptr;
        const Slot& slot = air->slots[number % SLOTS];
        return slot.number.load(std::memory_order_acquire) == number + 1 && slot.rate == rate ? &slot : nullptr;
    }

    Air* air;
};
