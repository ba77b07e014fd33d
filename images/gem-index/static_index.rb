# frozen_string_literal: true

require "digest"
require "fileutils"
require "rubygems"
require "rubygems/package"
require "zlib"

# The index of a directory of gems as static files, in both forms that clients ask for: the compact
# index (names, versions, info/NAME; Bundler's Compact Index API) and RubyGems' Marshal index
# (specs.4.8.gz and its kin, quick/). The same gems give the same bytes.
class StaticIndex
  EPOCH = Time.at(Integer(ENV.fetch("SOURCE_DATE_EPOCH"))).utc

  def initialize(dir)
    @dir = dir
    @gems = Dir.glob("#{dir}/gems/*.gem").sort.map { |file| [Gem::Package.new(file).spec, file] }
  end

  def write
    FileUtils.mkdir_p(["#{@dir}/info", "#{@dir}/quick/Marshal.4.8"])
    write_compact
    write_marshal
    lacking = missing_dependencies
    puts "gem index: #{@gems.size} gems, #{@gems.sum { |_, file| File.size(file) } / 1024} KiB"
    abort "dependencies that are not in the index: #{lacking.join(", ")}" if lacking.any?
  end

  private

  def requirement(value) = value.requirements.map { |operator, version| "#{operator} #{version}" }.sort.join("&")
  def number(spec) = spec.platform == "ruby" ? spec.version.to_s : "#{spec.version}-#{spec.platform}"

  def write_compact
    versions = +"created_at: #{EPOCH.strftime("%Y-%m-%dT%H:%M:%SZ")}\n---\n"
    by_name = @gems.group_by { |spec, _| spec.name }.sort.to_h
    by_name.each do |name, list|
      list = list.sort_by { |spec, _| spec.version }
      info = "---\n#{list.map { |spec, file| info_line(spec, file) }.join}"
      File.binwrite("#{@dir}/info/#{name}", info)
      numbers = list.map { |spec, _| number(spec) }.join(",")
      versions << "#{name} #{numbers} #{Digest::MD5.hexdigest(info)}\n" # the format asks for MD5
    end
    File.binwrite("#{@dir}/versions", versions)
    File.binwrite("#{@dir}/names", "---\n#{by_name.keys.join("\n")}\n")
  end

  def info_line(spec, file)
    dependencies = spec.runtime_dependencies.sort_by(&:name).map { |dep| "#{dep.name}:#{requirement(dep.requirement)}" }
    meta = ["checksum:#{Digest::SHA256.file(file).hexdigest}"]
    meta << "ruby:#{requirement(spec.required_ruby_version)}" unless spec.required_ruby_version.none?
    meta << "rubygems:#{requirement(spec.required_rubygems_version)}" unless spec.required_rubygems_version.none?
    "#{number(spec)} #{dependencies.join(",")}|#{meta.join(",")}\n"
  end

  def write_marshal
    @gems.each do |spec, _|
      File.binwrite("#{@dir}/quick/Marshal.4.8/#{spec.full_name}.gemspec.rz", Zlib.deflate(Marshal.dump(spec)))
    end
    tuples = @gems.map { |spec, _| [spec.name, spec.version, spec.platform.to_s] }
    prerelease, released = tuples.partition { |_, version, _| version.prerelease? }
    latest = released.group_by { |name, _, platform| [name, platform] }.values.map { |list| list.max_by { |tuple| tuple[1] } }
    { "specs" => released, "latest_specs" => latest, "prerelease_specs" => prerelease }.each do |name, list|
      Zlib::GzipWriter.open("#{@dir}/#{name}.4.8.gz") do |gzip|
        gzip.mtime = EPOCH.to_i
        gzip.write(Marshal.dump(list))
      end
    end
  end

  def missing_dependencies
    present = @gems.map { |spec, _| spec.name } | Gem::Specification.select(&:default_gem?).map(&:name)
    @gems.flat_map do |spec, _|
      spec.runtime_dependencies.reject { |dep| present.include?(dep.name) }.map { |dep| "#{spec.name} -> #{dep}" }
    end
  end
end
